"""The file for a probe: touched by a worker that works or waits for its broker, not by a hung one."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from local.processes.child import Child
from local.servers.redis_server import Redis
from local.waiting import eventually
from messaging.delivery import new_id
from reliable_celery.alive import EVERY_S
from testing.freezing import freeze, thaw
from tests.cluster.workers import ready_worker

#: Seconds; two touches and a busy machine.
ALIVE_S = 4 * EVERY_S


@pytest.fixture
def server(server_folder: Path) -> Iterator[Redis]:
    """A Redis of its own, since the test kills it."""
    with Redis(server_folder / f"alive-{new_id()}") as redis:
        yield redis


@pytest.fixture
def worker(server: Redis, new_database: Callable[[], str], tmp_path: Path) -> Iterator[Child]:
    """A worker that touches `alive` in the test's folder."""
    env = {
        "ALLOCATION_DATABASE_URL": new_database(),
        "ALLOCATION_BROKER_URL": server.url,
        "ALLOCATION_RESULT_BACKEND_URL": server.url_of(1),
        "ALLOCATION_WORKER_ALIVE_FILE": str(tmp_path / "alive"),
    }
    with ready_worker(tmp_path, env) as child:
        try:
            yield child
        finally:
            thaw(child.pid)


def test_a_worker_shows_that_it_is_alive_unless_it_hangs(worker: Child, server: Redis, tmp_path: Path):
    alive = tmp_path / "alive"

    _await_touch(alive)
    server.kill()
    eventually(lambda: "Connection to broker lost" in worker.log_text(), 30, "the loss of the broker")
    _await_touch(alive)
    _await_touch(alive)

    freeze(worker.pid)
    last = alive.stat().st_mtime
    frozen = time.time()
    eventually(lambda: time.time() - frozen > EVERY_S + 1, 20, "the time of a touch", every=0.5)
    assert alive.stat().st_mtime == last


def _await_touch(file: Path) -> None:
    before = file.stat().st_mtime
    eventually(lambda: file.stat().st_mtime > before, ALIVE_S, "a touch")
