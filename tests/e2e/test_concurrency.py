"""A worker's number of processes comes from the setting, or from its command line."""

from __future__ import annotations

import pytest
from celery import Celery

from local.processes import programs
from local.waiting import eventually
from tests.e2e.conftest import Backend, Broker


@pytest.fixture(scope="module")
def broker(broker_of) -> Broker:
    """The number does not depend on the broker."""
    return broker_of("redis")


@pytest.mark.parametrize(("options", "processes"), [([], 3), (["--concurrency=1"], 1)])
def test_a_worker_has_the_configured_number_of_processes(
    backend: Backend, broker: Broker, options: list[str], processes: int
):
    env = {**backend.env, "ALLOCATION_WORKER_CONCURRENCY": "3"}
    queues = f"--queues={programs.WORK_QUEUES}"
    child = programs.celery(
        "counted", backend.folder, env, "worker", "--hostname=counted@%h", queues, *options
    )
    child.start()
    try:
        backend.wait_for_worker(child)
        inspect = Celery(broker=broker.broker_url, set_as_current=False).control.inspect(timeout=5)
        [stats] = eventually(lambda: list((inspect.stats() or {}).values()))

        assert stats["pool"]["max-concurrency"] == processes
        assert len(stats["pool"]["processes"]) == processes
    finally:
        child.stop()
