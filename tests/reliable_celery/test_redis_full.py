"""A full Redis that evicts nothing: workers start, drain it, and answer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from local.processes.child import Child
from local.servers.redis_server import Redis
from local.waiting import eventually
from tests.reliable_celery.celery_fixtures.processes import (
    OUR_CONSUMER,
    await_ready,
    make_worker,
    sender,
    unfinished,
)

RESULTS = "reliable_celery.results:ResultBackend+"
ALONE = {"--without-gossip", "--without-mingle"}


@pytest.fixture
def own_server(server_folder: Path, tmp_path: Path) -> Iterator[Redis]:
    """A Redis that the test may fill."""
    with Redis(server_folder / tmp_path.name) as own:
        yield own


def ordinary_worker(server: Redis, folder: Path, pool: str) -> Child:
    """Return a worker that greets the others at its start, as in Celery's default."""
    results = RESULTS + server.url_of(1)
    worker = make_worker(server, folder, "late", pool, worker_consumer=OUR_CONSUMER, result_backend=results)
    worker.command = [part for part in worker.command if part not in ALONE]
    return worker


@pytest.mark.parametrize("pool", ["solo", "threads", "prefork"])
def test_a_worker_starts_on_a_full_redis_and_drains_it(own_server: Redis, tmp_path: Path, pool: str):
    """Every command is answered, although nothing more could be sent; then remote control works."""
    app = sender(own_server)
    worker = ordinary_worker(own_server, tmp_path, pool)
    with redis.Redis.from_url(own_server.url) as broker:
        sent = [app.send_task("fixture.add", (number, 1)) for number in range(100)]
        broker.config_set("maxmemory", 1)  # nothing that the worker does may make room for a sender
        with pytest.raises(redis.exceptions.OutOfMemoryError):
            broker.set("one", "more")
        try:
            worker.start()
            await_ready(worker)

            assert [result.get(timeout=60) for result in sent] == list(range(1, 101))
            eventually(lambda: unfinished(own_server) == 0, 30, "an empty queue")
            broker.config_set("maxmemory", 0)

            eventually(lambda: app.control.ping(timeout=1), 30, "an answer to a ping")
            assert app.send_task("fixture.add", (1, 2)).get(timeout=30) == 3
        finally:
            worker.kill()


def test_a_living_worker_keeps_its_lease_and_its_messages_on_a_full_redis(own_server: Redis, tmp_path: Path):
    """A worker that could not renew its lease would be considered dead."""
    app = sender(own_server)
    first = ordinary_worker(own_server, tmp_path, "prefork")
    with redis.Redis.from_url(own_server.url) as broker:
        try:
            first.start()
            await_ready(first)
            broker.config_set("maxmemory", 1)
            before = eventually(lambda: broker.zrange("unacked_leases", 0, -1, withscores=True))

            eventually(
                lambda: broker.zrange("unacked_leases", 0, -1, withscores=True)[0][1] > before[0][1] + 3,
                30,
                "a longer lease",
            )
            assert "could not be renewed" not in first.log_text()
        finally:
            first.kill()
    app.close()
