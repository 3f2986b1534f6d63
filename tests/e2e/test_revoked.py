"""An operator terminates a command that runs: what its sender is told is what happened."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from celery.exceptions import TaskRevokedError
from sqlalchemy import create_engine, text

from local.waiting import eventually

pytestmark = pytest.mark.usefixtures("worker")


@pytest.fixture(scope="module")
def broker(broker_of):
    """One kind of broker is enough here: what is tested is on this side of it."""
    return broker_of("redis")


@contextmanager
def locked(backend, statement: str, sku: str) -> Iterator[None]:
    """Somebody else holds a lock inside the block."""
    engine = create_engine(backend.addresses.database_url)
    with engine.begin() as somebody:
        somebody.execute(text(statement), {"sku": sku} if ":sku" in statement else {})
        yield
    engine.dispose()


def waiting(backend, part: str = "") -> int:
    """Return how many statements with this text wait for a lock."""
    locked = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    return backend.sql(f"{locked} AND position(:part in query) > 0", part=part)[0][0]


def allocated(backend, sku: str) -> list[tuple[str]]:
    return backend.sql("SELECT orderid FROM allocations WHERE sku = :sku", sku=sku)


def test_a_command_that_was_terminated_while_it_committed_is_not_told_revoked(shop, sku, backend):
    """Its process is gone, but the server has all that it needs to finish the transaction."""
    with locked(backend, "LOCK TABLE inbox IN EXCLUSIVE MODE", sku):
        sent = shop.send("allocate", "o1", sku, 1)
        eventually(lambda: waiting(backend, "COMMIT"), what="the commit of the command")
        shop.app.control.revoke(sent.id, terminate=True, signal="SIGKILL")
        eventually(lambda: waiting(backend) > 1, what="the record of the revocation")

    assert sent.get(timeout=30) == f"batch-{sku}"
    assert allocated(backend, sku) == [("o1",)]


def test_a_command_that_was_terminated_before_it_committed_is_told_revoked_and_has_no_effect(
    shop, sku, backend
):
    with locked(backend, "SELECT FROM products WHERE sku = :sku FOR UPDATE", sku):
        sent = shop.send("allocate", "o1", sku, 1)
        eventually(lambda: waiting(backend, "BEGIN"), what="the command at the lock")
        shop.app.control.revoke(sent.id, terminate=True, signal="SIGKILL")
        with pytest.raises(TaskRevokedError):
            sent.get(timeout=30)

    assert shop.ask("allocate", "o2", sku, 1) == f"batch-{sku}"
    assert allocated(backend, sku) == [("o2",)]
    assert backend.sql("SELECT error->>'type' FROM inbox WHERE task_id = :id", id=sent.id) == [
        ("TaskRevokedError",)
    ]
