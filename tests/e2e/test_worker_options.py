"""Options of `celery worker` with which a sender could be told what is not so."""

from __future__ import annotations

import pytest

from local.processes import programs
from local.waiting import eventually


@pytest.fixture(scope="module")
def broker(broker_of):
    """One kind of broker is enough: it does not matter here."""
    return broker_of("redis")


def test_a_worker_with_a_soft_time_limit_does_not_start(backend):
    """It raises at any moment, also between the commit and the answer."""
    queues, folder = programs.WORK_QUEUES, backend.folder
    worker = programs.worker("soft", queues, folder, backend.env, 1, "--soft-time-limit=5")
    worker.start()
    try:
        eventually(lambda: not worker.running, 60, "the worker's end")
    finally:
        worker.kill()

    assert "--soft-time-limit is not supported: set ALLOCATION_TASK_TIME_LIMIT_S" in worker.log_text()
