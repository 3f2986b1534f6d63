"""What is broken while orders flow: each fault is a function that breaks something and mends it."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass

import psutil
import psycopg2

from local import programs
from local.child import Child
from local.waiting import eventually
from tests.chaos.clock import Clock
from tests.chaos.traffic import Traffic
from tests.chaos.world import MAX_CONNECTIONS, WORKERS, World

#: Seconds that an outage lasts; longer than a command is tried, a mail is retried, a relay waits.
OUTAGE_S = 3.0
HOUR_S = 3600


@dataclass(frozen=True)
class Fault:
    """Something that happens; `forgets` tells that the broker loses messages by it."""

    name: str
    what: str
    run: Callable[[World, Traffic, random.Random], None]
    forgets: bool = False
    needs: str = ""  # what a world must have for it


FAULTS: dict[str, Fault] = {}
Run = Callable[[World, Traffic, random.Random], None]


def fault(what: str, forgets: bool = False, needs: str = "") -> Callable[[Run], Run]:
    """Register a fault under its function's name."""

    def register(run: Run) -> Run:
        FAULTS[run.__name__] = Fault(run.__name__, what, run, forgets, needs)
        return run

    return register


def last(seconds: float) -> None:
    """Let a fault last; the traffic goes on meanwhile."""
    time.sleep(seconds)


# Processes


@fault("SIGKILL of a pool child")
def kill_child(world: World, _traffic: Traffic, rng: random.Random) -> None:
    with suppress(psutil.NoSuchProcess, IndexError):
        children = psutil.Process(world.children[rng.choice(WORKERS)].pid).children()
        rng.choice(children).kill()


@fault("SIGKILL of a worker's main process")
def kill_worker(world: World, _traffic: Traffic, rng: random.Random) -> None:
    world.kill(rng.choice(WORKERS))


@fault("SIGKILL of a worker's main process in full work, 25 times")
def kill_worker_25_times(world: World, traffic: Traffic, rng: random.Random) -> None:
    for _ in range(25):
        _kill_at_work(world, traffic, rng, world.children[rng.choice(WORKERS)])


def _kill_at_work(world: World, traffic: Traffic, rng: random.Random, worker: Child) -> None:
    eventually(lambda: " ready." in worker.log_text(), 90, f"{worker.name} ready")
    traffic.burst(15)
    last(rng.uniform(0.02, 0.3))
    world.kill(worker.name)
    eventually(lambda: not worker.running, 30, f"the end of {worker.name}")
    world.supervisor.resume(worker.name)  # without the supervisor's back-off


@fault("SIGKILL of all workers at once, the housekeeping's too")
def kill_all_workers(world: World, _traffic: Traffic, _rng: random.Random) -> None:
    world.kill(*WORKERS, "housekeeping")


@fault("SIGKILL of beat")
def kill_beat(world: World, _traffic: Traffic, _rng: random.Random) -> None:
    world.kill("beat")


@fault("SIGTERM of all workers in the middle of the load, then a start: a deploy")
def deploy(world: World, _traffic: Traffic, _rng: random.Random) -> None:
    world.together(*(lambda name=name: world.supervisor.pause(name) for name in WORKERS))
    for name in WORKERS:
        world.supervisor.resume(name)


@fault("SIGSTOP of a worker for longer than its lease, then SIGCONT")
def freeze_worker(world: World, _traffic: Traffic, rng: random.Random) -> None:
    main = psutil.Process(world.children[rng.choice(WORKERS)].pid)
    family = [main, *main.children(recursive=True)]
    for process in family:
        process.suspend()
    last(float(world.env["ALLOCATION_WORKER_LEASE_S"]) + 3)
    for process in family:
        with suppress(psutil.NoSuchProcess):
            process.resume()


@fault("two beats and three relays")
def two_beats_three_relays(world: World, _traffic: Traffic, rng: random.Random) -> None:
    beat = programs.beat(world.folder / "second", world.env)
    beat.name = "beat2"
    queue = programs.HOUSEKEEPING_QUEUE
    more = [programs.worker(f"relay{number}", queue, world.folder, world.env, 1) for number in (2, 3)]
    for child in (beat, *more):
        world.add(world.ours(child))
    world.wait_for_workers("relay2", "relay3")
    world.kill(rng.choice(WORKERS))  # so that there is something to relay
    last(OUTAGE_S)
    world.remove("beat2", "relay2", "relay3")


@fault(
    "a worker whose clock jumps by hours, forth and back, SIGKILL while it is ahead",
    needs="clock",
)
def clock_jumps(world: World, traffic: Traffic, rng: random.Random) -> None:
    clock = Clock(world.folder)
    clock.jump_to(0)
    jumping = world.worker("jumping")
    jumping.env = {**(jumping.env or {}), **clock.environment()}
    world.add(jumping)
    world.wait_for_workers(jumping.name)
    for offset_s in (HOUR_S, -HOUR_S, HOUR_S):
        clock.jump_to(offset_s)
        traffic.burst(20)
        last(OUTAGE_S)
    traffic.burst(20)
    last(rng.uniform(0.02, 0.2))
    world.kill(jumping.name)
    world.remove(jumping.name)


# Orders that kill


@fault("a command that kills its worker's child each time")
def deadly_command(_world: World, traffic: Traffic, _rng: random.Random) -> None:
    _wait_until_parked(traffic, "child")


@fault("a command that kills its worker's main process each time")
def deadly_command_main(_world: World, traffic: Traffic, _rng: random.Random) -> None:
    _wait_until_parked(traffic, "main")


@fault("a command that hangs until its time limit each time")
def hanging_command(_world: World, traffic: Traffic, _rng: random.Random) -> None:
    _wait_until_parked(traffic, "nobody")


def _wait_until_parked(traffic: Traffic, whom: str) -> None:
    deadly = traffic.order("kill_worker", whom=whom)
    eventually(lambda: deadly.answered_at, 120, "the answer to the command that kills its worker")


@fault("an event whose handler kills its worker each time")
def deadly_event(world: World, traffic: Traffic, _rng: random.Random) -> None:
    deadly = traffic.order("raise_poison", sku=f"{traffic.prefix}-sku0")
    parked = (
        "SELECT status = 'failed' FROM deliveries WHERE causation_id = %s"
        " AND last_error LIKE 'WorkerCrashed%%'"
    )
    eventually(lambda: world.ask(parked, deadly.id)[0][0], 120, "the end of the event that kills its worker")


# Redis


@fault("Redis stopped and started with its data", needs="redis")
def redis_restarted(world: World, _traffic: Traffic, _rng: random.Random) -> None:
    world.redis.stop()
    last(OUTAGE_S)
    world.redis.start()


@fault("Redis killed with SIGKILL and started with its data, appendfsync always", needs="redis")
def redis_killed(world: World, traffic: Traffic, rng: random.Random) -> None:
    traffic.results.config_set("appendfsync", "always")  # until the kill
    last(rng.uniform(0.1, 0.5))
    traffic.burst(40)
    last(rng.uniform(0, 0.2))
    world.redis.kill()
    world.redis.start()


@fault(
    "Redis killed with SIGKILL, appendfsync everysec: up to a second may be gone", forgets=True, needs="redis"
)
def redis_killed_everysec(world: World, _traffic: Traffic, _rng: random.Random) -> None:
    world.redis.kill()
    world.redis.start()


@fault("every connection to Redis closed by the server", needs="redis")
def redis_connections_closed(world: World, traffic: Traffic, _rng: random.Random) -> None:
    for kind in ("normal", "pubsub"):
        traffic.results.client_kill_filter(_type=kind, skipme=True)


@fault("FLUSHALL on Redis: messages and results are gone", forgets=True, needs="redis")
def redis_flushed(_world: World, traffic: Traffic, _rng: random.Random) -> None:
    traffic.results.flushall()


@fault("Redis killed and started without its data", forgets=True, needs="redis")
def redis_wiped(world: World, _traffic: Traffic, _rng: random.Random) -> None:
    world.redis.kill()
    shutil.rmtree(world.redis.folder / "data")
    last(OUTAGE_S)
    world.redis.start()


# RabbitMQ


@fault("RabbitMQ stopped and started", needs="rabbitmq")
def rabbitmq_restarted(world: World, _traffic: Traffic, _rng: random.Random) -> None:
    world.rabbitmq.stop()
    world.rabbitmq.start()


@fault("RabbitMQ killed with SIGKILL and started", needs="rabbitmq")
def rabbitmq_killed(world: World, _traffic: Traffic, _rng: random.Random) -> None:
    world.rabbitmq.kill()
    world.rabbitmq.start()


@fault("every connection to RabbitMQ closed by the server", needs="rabbitmq")
def rabbitmq_connections_closed(world: World, _traffic: Traffic, _rng: random.Random) -> None:
    world.rabbitmq.control("close_all_connections", "chaos")


# PostgreSQL


@fault("PostgreSQL restarted (fast)")
def postgres_restarted(world: World, _traffic: Traffic, _rng: random.Random) -> None:
    world.postgres.stop()
    world.postgres.start()


@fault("PostgreSQL stopped at once (immediate) and recovered")
def postgres_immediate(world: World, _traffic: Traffic, _rng: random.Random) -> None:
    os.kill(world.postgres.pid, signal.SIGQUIT)
    eventually(lambda: not world.postgres.running, 30, "the end of PostgreSQL")
    world.postgres.start()


@fault("PostgreSQL killed with SIGKILL, away for seconds, and recovered")
def postgres_killed(world: World, _traffic: Traffic, _rng: random.Random) -> None:
    world.postgres.kill()
    last(OUTAGE_S)
    world.postgres.start()


@fault("every session on PostgreSQL terminated, three times")
def backends_terminated(world: World, _traffic: Traffic, rng: random.Random) -> None:
    for _ in range(3):
        _terminate_sessions(world)
        last(rng.uniform(0, 0.5))


def _terminate_sessions(world: World) -> None:
    world.ask(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )


CUT_OTHERS = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE usename = current_user AND application_name <> 'taker'"""


@fault("PostgreSQL's connections all taken by others, sessions cut")
def connections_exhausted(world: World, _traffic: Traffic, _rng: random.Random) -> None:
    url = world.addresses.database_url.replace("+psycopg2", "", 1)
    with ExitStack() as taken:
        end = time.monotonic() + OUTAGE_S
        while time.monotonic() < end:
            with suppress(psycopg2.OperationalError):
                for _ in range(MAX_CONNECTIONS):
                    session = psycopg2.connect(url, application_name="taker")
                    taken.callback(session.close)
            # One of those cuts the others' sessions, and the next turn takes their places.
            session.autocommit = True
            session.cursor().execute(CUT_OTHERS)


@fault("a lock on every product held for seconds")
def lock_held(world: World, _traffic: Traffic, _rng: random.Random) -> None:
    with world.sql() as run:
        run.execute("BEGIN; LOCK TABLE products IN EXCLUSIVE MODE")
        last(OUTAGE_S)
        run.execute("COMMIT")


@fault("deadlocks: locks taken the other way round, again and again")
def deadlocks(world: World, _traffic: Traffic, _rng: random.Random) -> None:
    end = time.monotonic() + OUTAGE_S
    while time.monotonic() < end:
        with suppress(psycopg2.Error), world.sql() as run:
            run.execute("BEGIN; SELECT FROM batches FOR UPDATE")
            last(0.1)
            run.execute("SELECT FROM products FOR UPDATE; COMMIT")


@fault("a read-only database, as after a failover or before a disk is full")
def postgres_read_only(world: World, _traffic: Traffic, _rng: random.Random) -> None:
    world.ask("ALTER DATABASE allocation SET default_transaction_read_only = on")
    _terminate_sessions(world)
    last(OUTAGE_S)
    with world.sql() as run:
        run.execute("SET transaction_read_only = off; SET default_transaction_read_only = off")
        run.execute("ALTER DATABASE allocation RESET default_transaction_read_only")


@fault("PostgreSQL's disk full to the last byte, then room again", needs="small disk")
def disk_full(world: World, _traffic: Traffic, _rng: random.Random) -> None:
    filler = world.postgres.folder / "filler"
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(65_536))
    last(2 * OUTAGE_S)
    filler.unlink()
    if not world.postgres.running:  # it ends when it cannot write its log
        world.postgres.start()


# Mail


@fault("the mail server down for longer than all retries")
def mail_down(world: World, _traffic: Traffic, _rng: random.Random) -> None:
    world.mail.stop()
    last(3 * OUTAGE_S)
    world.mail.start()


@fault("a mail server slower than its senders wait")
def mail_slow(world: World, _traffic: Traffic, _rng: random.Random) -> None:
    _mail_with(world, "--delay", "1.5")


@fault("a mail server that answers 451")
def mail_refuses(world: World, _traffic: Traffic, _rng: random.Random) -> None:
    _mail_with(world, "--reply", "451 try later")


@fault("a mail server that takes the mail and drops the connection")
def mail_drops_after_data(world: World, _traffic: Traffic, _rng: random.Random) -> None:
    _mail_with(world, "--drop-after-data")


def _mail_with(world: World, *switches: str) -> None:
    world.restart_mail(*switches)
    last(OUTAGE_S)
    world.restart_mail()
