"""Leases: messages of a worker that gives no sign of life go back long before the visibility timeout."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import redis

from local.processes.child import Child
from local.servers.redis_server import Redis
from local.waiting import eventually
from reliable_celery.redis.leases import TEND
from tests.reliable_celery.celery_fixtures.processes import (
    CONFIG,
    OUR_CONSUMER,
    make_worker,
    marks,
    running,
    sender,
    unfinished,
)

LEASES, INDEX = "unacked_leases", "unacked_index"
LEASE_S = 3


def leasing_worker(
    server: Redis, folder: Path, name: str, pool: str = "prefork", lease_s: float = LEASE_S
) -> Child:
    """Return a worker with a short lease, whose visibility timeout no test waits for."""
    options = CONFIG["broker_transport_options"] | {"visibility_timeout": 600, "lease_s": lease_s}
    return make_worker(
        server, folder, name, pool, worker_consumer=OUR_CONSUMER, broker_transport_options=options
    )


def tend(broker: redis.Redis, prefix: str = "", lease_s: float = 60, limit: int = 10) -> list[Any]:
    """Run the script as a worker does."""
    return broker.eval(TEND, 2, LEASES, INDEX, prefix, lease_s, limit)


# The script


def test_only_messages_whose_lease_ran_out_are_named(broker: redis.Redis):
    """Neither those of the living, nor those of a stock worker, which has no lease."""
    broker.zadd(INDEX, {"dead.1.1": 1, "alive.1.1": 1, "stock-tag": 1, "unleased.1.1": 1})
    tend(broker, "dead.", lease_s=-1)
    tend(broker, "alive.")

    assert tend(broker, "mine.") == [b"dead.1.1"]


def test_a_lease_goes_with_the_last_message_of_the_dead(broker: redis.Redis):
    """Until then every look names what is left, a bounded number at a time."""
    broker.zadd(INDEX, {f"dead.1.{n}": n for n in range(5)})
    tend(broker, "dead.", lease_s=-1)

    assert len(tend(broker, limit=2)) == 2
    assert broker.zscore(LEASES, "dead.") is not None
    broker.delete(INDEX)
    assert tend(broker) == []
    assert broker.zcard(LEASES) == 0


def test_who_was_taken_for_dead_and_lives_has_its_lease_back(broker: redis.Redis):
    """A worker that was frozen prolongs it like any other."""
    broker.zadd(INDEX, {"frozen.1.1": 1})
    tend(broker, "frozen.", lease_s=-1)

    tend(broker, "frozen.")

    assert tend(broker, "mine.") == []


# Real workers


def test_another_worker_gets_the_messages_of_a_killed_one(
    redis_server: Redis, broker: redis.Redis, tmp_path: Path
):
    """The one that runs and those that wait; nothing is left behind."""
    app = sender(redis_server, task_ignore_result=True)
    first, second = (leasing_worker(redis_server, tmp_path, name) for name in ("first", "second"))
    with running(first):
        for number in range(4):
            app.send_task("fixture.mark", (number, 1.0))
        eventually(lambda: broker.hlen("unacked") == 4, 30, "the first worker's grip on all")
        first.kill()
        with running(second):
            eventually(lambda: marks(redis_server).keys() == {0, 1, 2, 3}, 60, "all four marks")
            eventually(lambda: unfinished(redis_server) == 0, 30)
            eventually(lambda: broker.zcard(LEASES) == 1, 30, "the living worker's lease alone")


def test_a_frozen_worker_s_message_is_given_away_and_its_late_end_does_no_harm(
    redis_server: Redis, broker: redis.Redis, tmp_path: Path
):
    """Whether its own copy had begun or not; what it acknowledges late is not there any more."""
    app = sender(redis_server, task_ignore_result=True)
    first, second = (leasing_worker(redis_server, tmp_path, name) for name in ("first", "second"))
    with running(first):
        app.send_task("fixture.mark", (1, 1.0))
        eventually(lambda: broker.hlen("unacked") == 1, 30)
        os.kill(first.pid, signal.SIGSTOP)
        with running(second):
            eventually(lambda: "Requeued 1 messages" in second.log_text(), 30, "the message requeued")
            eventually(lambda: unfinished(redis_server) == 0, 30)
            os.kill(first.pid, signal.SIGCONT)
            app.send_task("fixture.mark", (2, 0.0))
            eventually(lambda: unfinished(redis_server) == 0, 30)
            eventually(lambda: broker.zcard(LEASES) == 2, 30, "both leases")
            eventually(lambda: marks(redis_server).get(1) in (1, 2) and marks(redis_server).get(2) == 1, 30)


def test_a_worker_that_stops_in_order_leaves_no_lease_and_finishes_what_runs(
    redis_server: Redis, broker: redis.Redis, tmp_path: Path
):
    """Though the task takes longer than the lease, and another worker is there to take it."""
    app = sender(redis_server, task_ignore_result=True)
    first, second = (leasing_worker(redis_server, tmp_path, name) for name in ("first", "second"))
    with running(first):
        app.send_task("fixture.mark", (1, LEASE_S + 3.0))
        eventually(lambda: broker.hlen("unacked") == 1, 30)
        with running(second):
            first.stop()
            eventually(lambda: unfinished(redis_server) == 0, 30)

    assert marks(redis_server) == {1: 1}


def test_a_solo_worker_holds_no_lease(redis_server: Redis, broker: redis.Redis, tmp_path: Path):
    """Its tasks run inside the loop: a long one would look like a death."""
    app = sender(redis_server, task_ignore_result=True)
    with running(leasing_worker(redis_server, tmp_path, "alone", "solo")):
        app.send_task("fixture.mark", (1, 0.0))
        eventually(lambda: marks(redis_server) == {1: 1}, 30)

        assert broker.zcard(LEASES) == 0


def ordinary(worker: Child) -> Child:
    """Have a worker greet the others at its start, as workers do unless told not to."""
    alone = {"--without-gossip", "--without-mingle"}
    worker.command = [part for part in worker.command if part not in alone]
    return worker


def test_a_worker_killed_with_its_first_messages_held_a_lease(
    redis_server: Redis, broker: redis.Redis, tmp_path: Path
):
    """The step that takes the messages takes it."""
    app = sender(redis_server, task_ignore_result=True)
    for number in (1, 2):
        app.send_task("fixture.mark", (number, 1.0))
    first, second = (
        ordinary(leasing_worker(redis_server, tmp_path, name, lease_s=10)) for name in ("first", "second")
    )
    try:
        first.start()
        eventually(lambda: broker.hlen("unacked"), 60, "the first messages", every=0.001)
        held = broker.zcard(LEASES)
        first.kill()
        with running(second):
            eventually(lambda: {1, 2} <= marks(redis_server).keys(), 40, "the messages of the killed worker")
    finally:
        first.kill()

    assert held == 1


def test_a_task_longer_than_the_visibility_timeout_is_not_given_to_another(
    redis_server: Redis, broker: redis.Redis, tmp_path: Path
):
    """Nor is what waits behind it: their worker is alive and says so."""
    app = sender(redis_server, task_ignore_result=True)
    options = CONFIG["broker_transport_options"] | {"visibility_timeout": 1, "lease_s": LEASE_S}
    workers = [
        make_worker(
            redis_server,
            tmp_path,
            name,
            "prefork",
            worker_consumer=OUR_CONSUMER,
            broker_transport_options=options,
        )
        for name in ("first", "second")
    ]
    with running(*workers):
        for number in range(8):
            app.send_task("fixture.mark", (number, 3.0))
        eventually(lambda: unfinished(redis_server) == 0, 60)
        received = sum(worker.log_text().count("] received") for worker in workers)

    assert marks(redis_server) == dict.fromkeys(range(8), 1)
    assert received == 8


def test_what_waits_in_a_solo_worker_behind_others_is_not_given_to_another(
    redis_server: Redis, broker: redis.Redis, tmp_path: Path
):
    """It says between two tasks what it holds; the visibility timeout need only be longer than one task."""
    app = sender(redis_server, task_ignore_result=True)
    options = CONFIG["broker_transport_options"] | {"visibility_timeout": 9, "lease_s": LEASE_S}
    workers = [
        make_worker(
            redis_server, tmp_path, name, worker_consumer=OUR_CONSUMER, broker_transport_options=options
        )
        for name in ("first", "second")
    ]
    with running(*workers):
        for number in range(8):
            app.send_task("fixture.mark", (number, 3.0))
        eventually(lambda: unfinished(redis_server) == 0, 60)

    assert marks(redis_server) == dict.fromkeys(range(8), 1)


def test_what_ran_when_redis_was_killed_comes_back_after_the_lease(server_folder: Path, tmp_path: Path):
    """A worker that could not give it back leaves its old lease to run out, and nothing to the timeout."""
    with Redis(server_folder / tmp_path.name) as own, redis.Redis.from_url(own.url) as client:
        client.config_set("appendfsync", "always")
        app = sender(own, task_ignore_result=True)
        with running(leasing_worker(own, tmp_path, "only")):
            for number in range(4):
                app.send_task("fixture.mark", (number, 3.0))
            eventually(lambda: client.hlen("unacked") == 4, 30, "the worker's grip on all")
            own.kill()
            own.start()

            eventually(lambda: marks(own).keys() == {0, 1, 2, 3}, 60, "all four marks")
            eventually(lambda: unfinished(own) == 0, 30)
