"""A worker with a pool of threads, which cannot be killed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis
from sqlalchemy import create_engine, text

from local.processes import programs
from local.processes.child import Child
from local.waiting import eventually


@pytest.fixture(scope="module")
def broker(broker_of):
    """One kind of broker is enough: it does not matter here."""
    return broker_of("redis")


@pytest.fixture(scope="module")
def worker(backend) -> Iterator[Child]:
    """A worker with one thread."""
    queues, folder = programs.WORK_QUEUES, backend.folder
    child = programs.worker("commands", queues, folder, backend.env, 1, "--pool=threads")
    child.start()
    backend.wait_for_worker(child)
    yield child
    child.stop()


def test_a_waiting_message_that_is_revoked_with_terminate_is_answered_once(
    worker, shop, sku, backend, broker
):
    engine = create_engine(backend.addresses.database_url)
    with redis.Redis.from_url(broker.broker_url) as client, engine.connect() as other:
        other.execute(text("SELECT FROM products WHERE sku = :sku FOR UPDATE"), {"sku": sku})
        sent = [shop.send("allocate", orderid, sku, 1) for orderid in ("o1", "o2")]
        eventually(lambda: client.zcard("allocation.unacked_index") == 2, what="both held by the worker")
        shop.app.control.revoke(sent[1].id, terminate=True)
        eventually(lambda: f"Terminating {sent[1].id}" in worker.log_text(), what="the revocation")
        other.rollback()
        answers = [one.get(timeout=30) for one in sent]
        eventually(lambda: not client.zcard("allocation.unacked_index"), what="no message held")
    engine.dispose()

    assert answers == [f"batch-{sku}", None]
