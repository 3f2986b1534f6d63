"""What breaks in a cluster. A played failover manager notices after two seconds, fences and promotes."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from local.waiting import eventually
from testing.freezing import freeze, thaw
from tests.chaos.traffic import Traffic
from tests.chaos.world import SETTINGS, WORKERS
from tests.cluster.world import FAR, NOTICED_S, ClusterWorld, PostgresWorld, RabbitWorld, SentinelWorld

#: Seconds without an answer: after a failover, and where no server died.
FAILOVER_S, NO_FAILOVER_S = 15.0, 2.0
#: A worker that is cut off in a transaction keeps its locks until the server ends it: the tasks' time limit.
LOCKS_S = float(SETTINGS["ALLOCATION_TASK_TIME_LIMIT_S"]) + NO_FAILOVER_S
#: A node of RabbitMQ is frozen for longer than workers, senders and the other nodes take to leave it.
FROZEN_S = 40.0
#: Without a majority everything waits until a node of RabbitMQ has started, some 10 s on two busy cores.
BOOT_S = 30.0
#: Valkey pauses writes for up to a second, and then has no replicas for up to another one.
PLANNED_S = 4.0
CUT_S = 4.0  # a worker is cut off for so long
LOCKED_S = 10.0  # and so long, if it keeps its locks: for longer than it may
MIXED_S = 3.0  # workers of two releases have the servers to themselves for so long
Run = Callable[[Any, Traffic, random.Random], None]
WAITING = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep'"


@dataclass(frozen=True)
class ClusterFault:
    """Something that breaks."""

    name: str
    what: str
    kind: str  # of the world
    run: Run
    limit_s: float  # the longest time without an answer that is accepted
    loses: bool = False  # what was answered may be lost: nothing else was promised
    typed: bool = False  # the senders are typed clients, not plain Celery apps


FAULTS: dict[str, ClusterFault] = {}


def fault(
    kind: str, what: str, limit_s: float = FAILOVER_S, *, loses: bool = False, typed: bool = False
) -> Callable[[Run], Run]:
    """Register a fault under its function's name."""

    def register(run: Run) -> Run:
        FAULTS[run.__name__] = ClusterFault(run.__name__, what, kind, run, limit_s, loses, typed)
        return run

    return register


def last(seconds: float) -> None:
    """Let something last; the traffic continues."""
    time.sleep(seconds)


# PostgreSQL


@fault("postgres", "primary killed, standby promoted")
def primary_killed(world: PostgresWorld, _traffic: Traffic, _rng: random.Random) -> None:
    world.pair.primary.kill()
    last(NOTICED_S)
    world.pair.promote()


@fault("postgres", "primary frozen, fenced, standby promoted")
def primary_frozen(world: PostgresWorld, _traffic: Traffic, _rng: random.Random) -> None:
    freeze(world.pair.primary.pid)
    last(NOTICED_S)
    world.pair.primary.kill()
    world.pair.promote()


@fault(
    "postgres", "primary cut off from its standby and alive, standby promoted, old primary fenced 3 s later"
)
def primary_partitioned(world: PostgresWorld, _traffic: Traffic, _rng: random.Random) -> None:
    pair = world.pair
    freeze(pair.standby.pid)  # nothing reaches it, and its connections stay open
    last(NOTICED_S)
    pair.primary.refuse_replication()
    thaw(pair.standby.pid)
    pair.promote()
    last(3)
    pair.standby.kill()


@fault("postgres", "standby frozen, waiting sessions ended, primary killed, standby promoted")
def sessions_ended_before_failover(world: PostgresWorld, _traffic: Traffic, _rng: random.Random) -> None:
    _interrupt_and_fail_over(world, "pg_terminate_backend")


@fault("postgres", "standby frozen, waits cancelled, primary killed, standby promoted")
def waits_cancelled_before_failover(world: PostgresWorld, _traffic: Traffic, _rng: random.Random) -> None:
    _interrupt_and_fail_over(world, "pg_cancel_backend")


def _interrupt_and_fail_over(world: PostgresWorld, interrupt: str) -> None:
    pair = world.pair
    freeze(pair.standby.pid)
    for _ in range(5):
        with suppress(AssertionError):
            waiting = eventually(lambda: pair.primary.ask(WAITING), 2, "a commit that waits")
            for (session,) in waiting:
                pair.primary.ask(f"SELECT {interrupt}(%s)", session)
        last(0.3)
    pair.primary.kill()
    thaw(pair.standby.pid)
    pair.promote()


@fault("postgres", "standby frozen, primary restarted, then killed, standby promoted")
def primary_restarted_before_failover(world: PostgresWorld, _traffic: Traffic, _rng: random.Random) -> None:
    pair = world.pair
    freeze(pair.standby.pid)
    eventually(lambda: pair.primary.ask(WAITING), 10, "a commit that waits")
    pair.primary.kill()
    pair.primary.start()  # it recovers what it had written, and shows it
    last(1)
    pair.primary.kill()
    thaw(pair.standby.pid)
    pair.promote()


@fault("postgres", "primary restarted in place")
def primary_restarted(world: PostgresWorld, _traffic: Traffic, _rng: random.Random) -> None:
    world.pair.primary.stop()
    world.pair.primary.start()


@fault("postgres", "standby killed; the manager lets commits go on without it after 2 s")
def standby_killed(world: PostgresWorld, _traffic: Traffic, _rng: random.Random) -> None:
    world.pair.standby.kill()
    last(NOTICED_S)
    world.pair.require_standby(False)


@fault("postgres", "planned switchover: primary stopped, standby promoted")
def switchover(world: PostgresWorld, _traffic: Traffic, _rng: random.Random) -> None:
    world.pair.primary.stop()
    world.pair.promote()


@fault("postgres", "asynchronous standby, connected: primary killed, standby promoted", loses=True)
def asynchronous_primary_killed(world: PostgresWorld, _traffic: Traffic, _rng: random.Random) -> None:
    world.pair.require_standby(False)
    last(1)
    world.pair.primary.kill()
    last(NOTICED_S)
    world.pair.promote()


@fault("postgres", "asynchronous standby, cut off for 1 s: primary killed, standby promoted", loses=True)
def asynchronous_standby_behind(world: PostgresWorld, _traffic: Traffic, _rng: random.Random) -> None:
    world.pair.require_standby(False)
    last(1)
    world.pair.primary.refuse_replication()
    last(1)
    world.pair.primary.kill()
    last(NOTICED_S)
    world.pair.promote()


@fault("postgres", "workers of the release before beside this one's, servers restarted in turn")
def postgres_upgraded(world: PostgresWorld, _traffic: Traffic, _rng: random.Random) -> None:
    def restart() -> None:
        world.pair.standby.stop()
        world.pair.standby.start()
        world.pair.primary.stop()
        world.pair.primary.start()

    _upgrade(world, restart)


@fault("postgres", "one worker of two cut off from the database", NO_FAILOVER_S)
def worker_without_database(world: PostgresWorld, _traffic: Traffic, _rng: random.Random) -> None:
    _cut_off(world)


@fault("postgres", "what the database sends to one worker of two is dropped", LOCKS_S)
def worker_deaf_to_database(world: PostgresWorld, _traffic: Traffic, _rng: random.Random) -> None:
    _stall(world, LOCKED_S, to_client=True, to_server=False)


@fault("postgres", "a host of workers killed", NO_FAILOVER_S)
def host_killed(world: PostgresWorld, _traffic: Traffic, _rng: random.Random) -> None:
    world.kill_host(FAR)


# Redis with Sentinel


@fault("sentinel", "Redis' primary killed")
def redis_primary_killed(world: SentinelWorld, _traffic: Traffic, _rng: random.Random) -> None:
    old = world.sentinels.primary
    old.kill()
    world.sentinels.wait_for_failover(old)


@fault("sentinel", "Redis' primary frozen for 8 s, then back as a replica")
def redis_primary_frozen(world: SentinelWorld, _traffic: Traffic, _rng: random.Random) -> None:
    old = world.sentinels.primary
    freeze(old.pid)
    world.sentinels.wait_for_failover(old)
    last(3)
    thaw(old.pid)


@fault("sentinel", "a replica of Redis killed", NO_FAILOVER_S)
def redis_replica_killed(world: SentinelWorld, _traffic: Traffic, rng: random.Random) -> None:
    rng.choice(world.sentinels.replicas).kill()


@fault("sentinel", "all replicas of Redis killed for 3 s: NOREPLICAS")
def redis_replicas_killed(world: SentinelWorld, _traffic: Traffic, _rng: random.Random) -> None:
    replicas = world.sentinels.replicas
    for replica in replicas:
        replica.kill()
    last(3)
    world.sentinels.restart(*replicas)


@fault("sentinel", "all replicas of Redis frozen for 5 s: NOREPLICAS")
def redis_replicas_frozen(world: SentinelWorld, _traffic: Traffic, _rng: random.Random) -> None:
    replicas = world.sentinels.replicas
    for replica in replicas:
        freeze(replica.pid)
    last(5)
    for replica in replicas:
        thaw(replica.pid)


@fault("sentinel", "a Sentinel killed", NO_FAILOVER_S)
def sentinel_killed(world: SentinelWorld, _traffic: Traffic, rng: random.Random) -> None:
    rng.choice(world.sentinels.sentinels).kill()


@fault("sentinel", "the first Sentinel frozen, then the primary killed")
def sentinel_frozen_and_primary_killed(world: SentinelWorld, _traffic: Traffic, _rng: random.Random) -> None:
    old = world.sentinels.primary
    frozen = world.sentinels.sentinels[0]
    freeze(frozen.pid)
    old.kill()
    world.sentinels.wait_for_failover(old)
    last(1)
    thaw(frozen.pid)


@fault("sentinel", "planned failover: SENTINEL FAILOVER … COORDINATED (Valkey 9)", PLANNED_S)
def redis_planned_failover(world: SentinelWorld, _traffic: Traffic, _rng: random.Random) -> None:
    world.sentinels.fail_over("COORDINATED")


@fault("sentinel", "planned failover: SENTINEL FAILOVER, plain Celery senders")
def redis_planned_failover_uncoordinated(
    world: SentinelWorld, _traffic: Traffic, _rng: random.Random
) -> None:
    world.sentinels.fail_over()


@fault("sentinel", "the same, senders with the typed client", PLANNED_S, typed=True)
def redis_planned_failover_typed(world: SentinelWorld, _traffic: Traffic, _rng: random.Random) -> None:
    world.sentinels.fail_over()


@fault("sentinel", "the same, plain Celery senders, then REPLICAOF on the old primary", PLANNED_S)
def redis_planned_failover_finished(world: SentinelWorld, _traffic: Traffic, _rng: random.Random) -> None:
    old = world.sentinels.primary
    world.sentinels.fail_over()
    world.sentinels.demote(old)


@fault("sentinel", "workers of the release before beside this one's, all restarted in turn")
def sentinel_upgraded(world: SentinelWorld, traffic: Traffic, rng: random.Random) -> None:
    _upgrade(world, lambda: redis_rolling_restart(world, traffic, rng))


@fault("sentinel", "all restarted one after the other")
def redis_rolling_restart(world: SentinelWorld, _traffic: Traffic, _rng: random.Random) -> None:
    sentinels = world.sentinels
    for sentinel in sentinels.sentinels:
        sentinel.kill()
        sentinel.start()
    sentinels.wait_until_whole()
    replicas, old = sentinels.replicas, sentinels.primary
    for replica in replicas:
        replica.kill()
        sentinels.restart(replica)
        sentinels.wait_until_whole()
    sentinels.fail_over("COORDINATED")
    old.kill()
    sentinels.restart(old)


# RabbitMQ


@fault("rabbitmq", "the node killed to which workers and senders are connected")
def rabbit_connected_killed(world: RabbitWorld, _traffic: Traffic, _rng: random.Random) -> None:
    _gather(world)
    world.rabbits.nodes[0].kill()


@fault("rabbitmq", "the node killed that leads the queue of commands")
def rabbit_leader_killed(world: RabbitWorld, _traffic: Traffic, _rng: random.Random) -> None:
    world.rabbits.leader_of("allocation.commands").kill()


@fault("rabbitmq", "a node killed that leads nothing of commands")
def rabbit_follower_killed(world: RabbitWorld, _traffic: Traffic, rng: random.Random) -> None:
    leader = world.rabbits.leader_of("allocation.commands")
    rng.choice([node for node in world.rabbits.nodes if node is not leader]).kill()


@fault("rabbitmq", "two of three nodes killed, one started after 3 s: a minority confirms nothing", BOOT_S)
def rabbit_two_killed(world: RabbitWorld, _traffic: Traffic, _rng: random.Random) -> None:
    first, second, _ = world.rabbits.nodes
    first.kill()
    second.kill()
    last(3)
    first.start()


@fault("rabbitmq", "the connected node frozen for 40 s")
def rabbit_connected_frozen(world: RabbitWorld, _traffic: Traffic, _rng: random.Random) -> None:
    _gather(world)
    node = world.rabbits.nodes[0]
    freeze(node.pid)
    last(FROZEN_S)
    thaw(node.pid)


@fault("rabbitmq", "all nodes restarted one after the other")
def rabbit_rolling_restart(world: RabbitWorld, _traffic: Traffic, _rng: random.Random) -> None:
    for node in world.rabbits.nodes:
        node.stop()
        node.start()
        world.rabbits.wait_until_whole()


@fault("rabbitmq", "workers of the release before beside this one's, all nodes restarted in turn")
def rabbit_upgraded(world: RabbitWorld, traffic: Traffic, rng: random.Random) -> None:
    _upgrade(world, lambda: rabbit_rolling_restart(world, traffic, rng))


@fault("rabbitmq", "one worker of two cut off from the broker", NO_FAILOVER_S)
def worker_without_broker(world: RabbitWorld, _traffic: Traffic, _rng: random.Random) -> None:
    _cut_off(world)


@fault("rabbitmq", "what one worker of two sends to the broker is dropped", NO_FAILOVER_S)
def worker_mute_to_broker(world: RabbitWorld, _traffic: Traffic, _rng: random.Random) -> None:
    _stall(world, CUT_S, to_server=True, to_client=False)


@fault("rabbitmq", "all hosts of workers killed, one after the other", NO_FAILOVER_S)
def hosts_killed(world: RabbitWorld, _traffic: Traffic, _rng: random.Random) -> None:
    for name in WORKERS:
        world.kill_host(name)
        world.start_again(name)
        world.wait_until_ready(name)


def _gather(world: RabbitWorld) -> None:
    """Have all workers on the first node, where the senders begin: earlier faults drove them away."""
    world.replace(*WORKERS)


def _upgrade(world: ClusterWorld, restart_servers: Callable[[], None]) -> None:
    """Replace the workers of the release before by this one's, and restart the servers between the two."""
    world.replace(*WORKERS, old=True)
    last(MIXED_S)
    world.replace(WORKERS[0])
    last(MIXED_S)
    restart_servers()
    world.replace(WORKERS[1])
    last(MIXED_S)


def _cut_off(world: ClusterWorld) -> None:
    for link in world.links:
        link.cut()
    last(CUT_S)
    for link in world.links:
        link.mend()


def _stall(world: ClusterWorld, seconds: float, *, to_server: bool, to_client: bool) -> None:
    for link in world.links:
        link.stall(to_server=to_server, to_client=to_client)
    last(seconds)
    for link in world.links:
        link.mend()
