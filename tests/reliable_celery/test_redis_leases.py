"""Leases: messages of a silent worker are requeued long before the visibility timeout."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import redis

from local.processes.child import Child
from local.servers.redis_server import Redis
from local.waiting import eventually
from reliable_celery.redis.leases import OVERDUE, TEND
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
    """Return a worker with a short lease and a visibility timeout longer than any test."""
    options = CONFIG["broker_transport_options"] | {"visibility_timeout": 600, "lease_s": lease_s}
    return make_worker(
        server, folder, name, pool, worker_consumer=OUR_CONSUMER, broker_transport_options=options
    )


def tend(broker: redis.Redis, prefix: str = "", lease_s: float = 60, limit: int = 10) -> list[Any]:
    """Run the script as a worker does."""
    return broker.eval(TEND, 2, LEASES, INDEX, prefix, lease_s, limit)


# The script


def test_only_messages_with_an_expired_lease_are_returned(broker: redis.Redis):
    """Neither those of living workers, nor those of stock workers, which have no lease."""
    broker.zadd(INDEX, {"dead.1.1": 1, "alive.1.1": 1, "stock-tag": 1, "unleased.1.1": 1})
    tend(broker, "dead.", lease_s=-1)
    tend(broker, "alive.")

    assert tend(broker, "mine.") == [b"dead.1.1"]


def test_a_dead_workers_lease_is_deleted_with_its_last_message(broker: redis.Redis):
    """Until then each run returns the remaining messages, a limited number at a time."""
    broker.zadd(INDEX, {f"dead.1.{n}": n for n in range(5)})
    tend(broker, "dead.", lease_s=-1)

    assert len(tend(broker, limit=2)) == 2
    assert broker.zscore(LEASES, "dead.") is not None
    broker.delete(INDEX)
    assert tend(broker) == []
    assert broker.zcard(LEASES) == 0


def test_a_worker_that_was_considered_dead_gets_its_lease_back(broker: redis.Redis):
    """After a freeze it renews its lease like any other worker."""
    broker.zadd(INDEX, {"frozen.1.1": 1})
    tend(broker, "frozen.", lease_s=-1)

    tend(broker, "frozen.")

    assert tend(broker, "mine.") == []


def test_no_lease_counts_as_expired_right_after_a_worker_found_its_own_expired(broker: redis.Redis):
    """Redis may have stood still, so all get the time to renew theirs; messages of the dead follow then."""
    broker.zadd(INDEX, {"dead.1.1": 1, "mine.1.1": 1})
    for name in "dead.", "mine.":
        tend(broker, name, lease_s=-1)

    assert tend(broker, "mine.", lease_s=4) == []
    assert broker.eval(OVERDUE, 2, LEASES, INDEX, 10, -1) == []
    assert tend(broker, "another.") == []
    eventually(lambda: tend(broker, "mine.", lease_s=4) == [b"dead.1.1"], 10)
    assert broker.eval(OVERDUE, 2, LEASES, INDEX, 10, -1) == [b"dead.1.1"]
    assert broker.zscore(LEASES, "grace") is None


# Real workers


def test_another_worker_gets_the_messages_of_a_killed_one(
    redis_server: Redis, broker: redis.Redis, tmp_path: Path
):
    """The running one and the waiting ones; nothing is left behind."""
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


def test_a_frozen_workers_message_is_redelivered_and_its_late_end_is_harmless(
    redis_server: Redis, broker: redis.Redis, tmp_path: Path
):
    """Whether its own copy had started or not; its late acknowledgement finds nothing."""
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


def test_a_worker_that_stops_properly_leaves_no_lease_and_finishes_its_tasks(
    redis_server: Redis, broker: redis.Redis, tmp_path: Path
):
    """Even if the task takes longer than the lease, and another worker could take it."""
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
    """Its tasks run inside the loop: a long one would look like a crash."""
    app = sender(redis_server, task_ignore_result=True)
    with running(leasing_worker(redis_server, tmp_path, "alone", "solo")):
        app.send_task("fixture.mark", (1, 0.0))
        eventually(lambda: marks(redis_server) == {1: 1}, 30)

        assert broker.zcard(LEASES) == 0


def ordinary(worker: Child) -> Child:
    """Make a worker greet the others at its start, as in Celery's default."""
    alone = {"--without-gossip", "--without-mingle"}
    worker.command = [part for part in worker.command if part not in alone]
    return worker


def test_a_worker_killed_with_its_first_messages_held_a_lease(
    redis_server: Redis, broker: redis.Redis, tmp_path: Path
):
    """The same step takes the messages and the lease."""
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


def test_a_task_longer_than_the_visibility_timeout_is_not_redelivered(
    redis_server: Redis, broker: redis.Redis, tmp_path: Path
):
    """Nor are those that wait behind it: their worker is alive and renews its lease."""
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


def test_messages_that_wait_in_a_solo_worker_are_not_redelivered(
    redis_server: Redis, broker: redis.Redis, tmp_path: Path
):
    """It registers them anew between tasks, also those that it could not acknowledge yet.

    Two tasks may run before it does so, hence a visibility timeout of three.
    """
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


def test_tasks_that_ran_when_redis_was_killed_are_redelivered_after_the_lease(
    server_folder: Path, tmp_path: Path
):
    """A worker that could not requeue them lets its old lease expire, without the visibility timeout."""
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


def test_what_living_workers_run_is_not_redelivered_after_redis_stood_still(
    server_folder: Path, tmp_path: Path
):
    """All leases have expired then; each worker renews its own, and none takes what another one runs."""
    with Redis(server_folder / tmp_path.name) as own:
        app = sender(own, task_ignore_result=True)
        workers = [leasing_worker(own, tmp_path, name) for name in ("first", "second", "third")]
        with running(*workers):
            for number in range(3):
                app.send_task("fixture.mark", (number, 3 * LEASE_S))
            eventually(lambda: received(workers) == 3, 30, "three tasks that run")
            os.kill(own.pid, signal.SIGSTOP)
            time.sleep(LEASE_S + 2)  # the silence that is tested
            os.kill(own.pid, signal.SIGCONT)
            eventually(lambda: unfinished(own) == 0, 40)

            assert not [worker.name for worker in workers if "Requeued" in worker.log_text()]
            assert (received(workers), marks(own)) == (3, {0: 1, 1: 1, 2: 1})


def received(workers: list[Child]) -> int:
    """Return how many messages the workers have received in all."""
    return sum(worker.log_text().count("] received") for worker in workers)
