"""Options of `celery worker` with which a sender could be told what is not so."""

from __future__ import annotations

import pytest

from local.processes import programs
from tests.refused import log_of_refused


@pytest.fixture(scope="module")
def broker(broker_of):
    """One kind of broker is enough: it does not matter here."""
    return broker_of("redis")


def test_a_worker_with_a_soft_time_limit_does_not_start(backend):
    """It raises at any moment, also between the commit and the answer."""
    queues, folder = programs.WORK_QUEUES, backend.folder
    worker = programs.worker("soft", queues, folder, backend.env, 1, "--soft-time-limit=5")

    assert "--soft-time-limit is not supported: set ALLOCATION_TASK_TIME_LIMIT_S" in log_of_refused(worker)
