"""What a worker's main process does about the end of a task."""

from __future__ import annotations

from pathlib import Path

import pytest
import redis

from local.servers.redis_server import Redis
from local.waiting import eventually
from tests.refused import log_of_refused
from tests.reliable_celery.celery_fixtures.processes import (
    OUR_CONSUMER,
    make_worker,
    marks,
    running,
    sender,
    unfinished,
)

TASKS = 500


@pytest.mark.parametrize("pool", ["solo", "threads", "prefork"])
def test_a_task_that_ran_out_of_memory_is_answered_and_ends_no_worker(
    redis_server: Redis, broker: redis.Redis, tmp_path: Path, pool: str
):
    """Celery would end the worker, and then each one that gets the message again."""
    worker = make_worker(redis_server, tmp_path, "w", pool, worker_consumer=OUR_CONSUMER)
    app = sender(redis_server)
    with running(worker):
        with pytest.raises(MemoryError, match="all is taken"):
            app.send_task("fixture.exhaust").get(timeout=30)
        assert app.send_task("fixture.add", (1, 2)).get(timeout=30) == 3
        eventually(lambda: unfinished(redis_server) == 0, what="nothing left in the broker")

        assert worker.running
    assert "Dead letter" not in worker.log_text()


@pytest.mark.parametrize("pool", ["solo", "prefork"])
def test_a_task_that_acknowledges_early_runs_once_although_it_kills_its_process(
    redis_server: Redis, broker: redis.Redis, tmp_path: Path, pool: str
):
    """Its acknowledgement waits for no others: the worker may die before its loop turns again."""
    worker = make_worker(
        redis_server, tmp_path, "w", pool, worker_consumer=OUR_CONSUMER, task_acks_late=False
    )
    with running(worker):
        sender(redis_server).send_task("fixture.die", (1, pool == "prefork"), ignore_result=True)
        eventually(lambda: not worker.running, 30, "the worker's end")

    assert marks(redis_server) == {1: 1}
    assert unfinished(redis_server) == 0


def test_threads_that_acknowledge_early_leave_nothing_behind(
    redis_server: Redis, broker: redis.Redis, tmp_path: Path
):
    """Acknowledgements are collected for the next trip; two that send them at once must not lose any."""
    worker = make_worker(
        redis_server, tmp_path, "w", "threads", concurrency=8, worker_consumer=OUR_CONSUMER,
        task_acks_late=False, worker_prefetch_multiplier=8,
    )  # fmt: skip
    app = sender(redis_server)
    with running(worker):
        for number in range(TASKS):
            app.send_task("fixture.mark", (number,), ignore_result=True)

        eventually(lambda: marks(redis_server) == dict.fromkeys(range(TASKS), 1), 30, "all marks")
        eventually(lambda: unfinished(redis_server) == 0, 5, "all acknowledgements")


def test_a_pool_of_greenlets_is_refused(redis_server: Redis, broker: redis.Redis, tmp_path: Path):
    """Messages for later would never come back: nothing would look for them under load."""
    green = "tests.reliable_celery.celery_fixtures.pools:GreenPool"
    worker = make_worker(
        redis_server, tmp_path, "w", "prefork", worker_consumer=OUR_CONSUMER, worker_pool=green
    )

    assert "does not work with the pools gevent and eventlet" in log_of_refused(worker)
