"""A message finds a process that is free, whatever the worker's prefetch is."""

from __future__ import annotations

from pathlib import Path

import redis

from local.servers.redis_server import Redis
from local.waiting import eventually
from tests.reliable_celery.celery_fixtures.processes import OUR_CONSUMER, make_worker, marks, running, sender

SLOW_S = 30.0


def test_a_worker_that_prefetches_nothing_takes_one_message_after_the_other(
    redis_server: Redis, broker: redis.Redis, tmp_path: Path
):
    """`--disable-prefetch`: the number of messages that it may hold is not its prefetch count."""
    worker = make_worker(
        redis_server, tmp_path, "w", "threads", worker_consumer=OUR_CONSUMER,
        worker_prefetch_multiplier=4, worker_disable_prefetch=True,
    )  # fmt: skip
    app = sender(redis_server)
    with running(worker):
        for number in range(20):
            app.send_task("fixture.mark", (number,), ignore_result=True)

        eventually(lambda: marks(redis_server) == dict.fromkeys(range(20), 1), 15, "all marks")


def test_the_last_free_thread_of_eight_takes_a_message(
    redis_server: Redis, broker: redis.Redis, tmp_path: Path
):
    """With a multiplier of 1, one free place of eight is a thread that does nothing."""
    worker = make_worker(
        redis_server, tmp_path, "w", "threads", concurrency=8, worker_consumer=OUR_CONSUMER,
        worker_prefetch_multiplier=1,
    )  # fmt: skip
    app = sender(redis_server)
    with running(worker):
        for number in range(7):
            app.send_task("fixture.mark", (number, SLOW_S), ignore_result=True)
        eventually(lambda: broker.hlen("unacked") == 7, 10, "seven messages under way")

        app.send_task("fixture.mark", (100,), ignore_result=True)

        eventually(lambda: marks(redis_server) == {100: 1}, SLOW_S / 2, "the mark of the eighth")
