"""A worker that cannot reach the results' server keeps every message until its sender can be answered."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest
import redis
from celery import exceptions

from local.processes.child import Child
from local.servers.redis_server import Redis
from local.waiting import eventually
from tests.e2e.conftest import Backend, Broker, Shop
from tests.e2e.test_revoked import in_progress, waiting

pytestmark = pytest.mark.usefixtures("worker")


@pytest.fixture(scope="module")
def results(server_folder: Path) -> Iterator[Redis]:
    """A Redis for results alone."""
    with Redis(server_folder / "results") as own:
        yield own


@pytest.fixture(scope="module")
def broker(broker_of: Callable[[str], Broker], results: Redis) -> Broker:
    """One kind of broker is enough: it does not matter here."""
    return Broker(broker_of("redis").broker_url, results.url)


def test_a_command_that_is_revoked_while_the_results_are_away_is_answered_later(
    backend: Backend, shop: Shop, other_shop: Shop, sku: str, worker: Child, results: Redis
):
    """Its message is redelivered; it is not kept by a worker that has forgotten it."""
    with in_progress(backend, "SELECT FROM products WHERE sku = :sku FOR UPDATE", sku=sku):
        sent = shop.send("allocate", "o1", sku, 1)
        eventually(lambda: waiting(backend, "BEGIN"), what="the command at the lock")
        results.kill()
        shop.app.control.revoke(sent.id, terminate=True, signal="SIGKILL")
        eventually(lambda: "could not be answered" in worker.log_text(), what="a revocation without results")
        results.start()

        with pytest.raises(exceptions.TaskRevokedError):
            other_shop.app.AsyncResult(sent.id).get(timeout=30)

    assert_settled(backend)
    assert backend.sql("SELECT orderid FROM allocations WHERE sku = :sku", sku=sku) == []


def test_a_revoked_repeat_is_answered_later_with_the_first_result(
    backend: Backend, shop: Shop, other_shop: Shop, sku: str, worker: Child, results: Redis
):
    """Its answer is another one than the revocation."""
    task_id, key = str(uuid4()), f"order-{sku}"
    assert shop.ask("allocate", "o1", sku, 1, key=key) == f"batch-{sku}"
    shop.app.control.revoke(task_id, reply=True)
    asks_nothing = Shop(Broker(backend.addresses.broker_url, "disabled://"))
    results.kill()
    asks_nothing.send("allocate", "o1", sku, 1, key=key, task_id=task_id)
    eventually(lambda: f"{task_id}] could not be answered" in worker.log_text(), what="no results")
    results.start()

    assert other_shop.app.AsyncResult(task_id).get(timeout=30) == f"batch-{sku}"
    assert_settled(backend)
    asks_nothing.close()


def assert_settled(backend: Backend) -> None:
    """Wait until no command waits or is unacknowledged."""
    with redis.Redis.from_url(backend.addresses.broker_url) as client:
        keys = "allocation.commands", "allocation.unacked"
        eventually(lambda: not client.exists(*keys), what="no command that waits or is held")
