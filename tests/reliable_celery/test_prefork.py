"""A stopping worker ends when its children have finished, not half a minute later."""

from __future__ import annotations

import time
from pathlib import Path

import psutil

from local.servers.redis_server import Redis
from local.waiting import eventually
from tests.reliable_celery.celery_fixtures.processes import make_worker, running, sender


def test_a_worker_ends_with_a_job_that_started_while_it_was_stopping(redis_server: Redis, tmp_path: Path):
    """The children are delayed, as on a busy machine: they start a job that the pool has given up."""
    worker = make_worker(redis_server, tmp_path, "w", "prefork", loglevel="DEBUG")
    with running(worker):
        children = psutil.Process(worker.pid).children()
        for child in children:
            child.suspend()
        for number in range(2):
            sender(redis_server).send_task("fixture.add", (1, number))
        eventually(lambda: worker.log_text().count("received") == 2, what="both tasks in the worker")

        psutil.Process(worker.pid).terminate()
        eventually(lambda: "Stopping Pool" in worker.log_text(), what="the end of the pool")
        resumed = time.monotonic()
        for child in children:
            child.resume()
        eventually(lambda: not worker.running, 60, "the end of the worker")

    assert time.monotonic() - resumed < 10  # seconds; with Celery's own pool 30
