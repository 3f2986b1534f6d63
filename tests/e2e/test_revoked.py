"""Ended from outside, refused when it comes again: what the sender of a command is told is what happened."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import uuid4

import pytest
import redis
from celery import exceptions
from sqlalchemy import create_engine, text

from local.waiting import eventually
from tests.e2e.hostile_messages import good

pytestmark = pytest.mark.usefixtures("worker")


@pytest.fixture(scope="module")
def broker(broker_of):
    """One kind of broker is enough here: what is tested is on this side of it."""
    return broker_of("redis")


@contextmanager
def in_progress(backend, statement: str, **values: str) -> Iterator[None]:
    """Another session has run a statement; it rolls back at the end of the block."""
    engine = create_engine(backend.addresses.database_url)
    with engine.connect() as other:
        other.execute(text(statement), values)
        yield
    engine.dispose()


def waiting(backend, part: str = "") -> int:
    """Return how many statements with this text wait for a lock."""
    locked = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    return backend.sql(f"{locked} AND position(:part in query) > 0", part=part)[0][0]


def allocated(backend, sku: str) -> list[tuple[str]]:
    return backend.sql("SELECT orderid FROM allocations WHERE sku = :sku", sku=sku)


def test_a_command_that_was_terminated_while_it_committed_is_not_told_revoked(shop, sku, backend):
    """Its process is gone, but the server has all that it needs to finish the transaction.

    The command's answer is written and waits for an uncommitted one under the same key; the record of the
    revocation then waits for the command.
    """
    task_id = str(uuid4())
    answer = "INSERT INTO inbox (task_id, idempotency_key, command, result) VALUES ('other', :id, '', 'null')"
    with in_progress(backend, answer, id=task_id):
        sent = shop.send("allocate", "o1", sku, 1, task_id=task_id)
        eventually(lambda: waiting(backend, "COMMIT"), what="the commit of the command")
        shop.app.control.revoke(sent.id, terminate=True, signal="SIGKILL")
        eventually(lambda: waiting(backend) > 1, what="the record of the revocation")

    assert sent.get(timeout=30) == f"batch-{sku}"
    assert allocated(backend, sku) == [("o1",)]


def test_a_command_that_was_terminated_before_it_committed_is_told_revoked_and_has_no_effect(
    shop, sku, backend
):
    with in_progress(backend, "SELECT FROM products WHERE sku = :sku FOR UPDATE", sku=sku):
        sent = shop.send("allocate", "o1", sku, 1)
        eventually(lambda: waiting(backend, "BEGIN"), what="the command at the lock")
        shop.app.control.revoke(sent.id, terminate=True, signal="SIGKILL")
        with pytest.raises(exceptions.TaskRevokedError):
            sent.get(timeout=30)

    assert shop.ask("allocate", "o2", sku, 1) == f"batch-{sku}"
    assert allocated(backend, sku) == [("o2",)]
    assert backend.sql("SELECT error->>'type' FROM inbox WHERE task_id = :id", id=sent.id) == [
        ("TaskRevokedError",)
    ]


def test_a_soft_time_limit_of_a_sender_is_not_told_as_the_outcome(shop, sku, backend):
    """It would be raised at any moment, also after the commit."""
    with in_progress(backend, "SELECT FROM products WHERE sku = :sku FOR UPDATE", sku=sku):
        sent = shop.app.send_task(
            "allocation.allocate",
            ("o1", sku, 1),
            queue="allocation.commands",
            soft_time_limit=0.2,
            declare=(),
        )
        eventually(lambda: waiting(backend, "BEGIN"), what="the command at the lock")
        with pytest.raises(exceptions.TimeoutError):
            sent.get(timeout=0.6)

    assert sent.get(timeout=30) == f"batch-{sku}"


def test_a_delivery_that_was_revoked_is_still_made(shop, sku, backend, mail_is_down):
    """Its messages all have its id; an operator gives it up by discarding it."""
    shop.ask("allocate", "o1", sku, 99)
    failed = "SELECT id::text FROM deliveries WHERE status = 'failed' AND payload->>'sku' = :sku"
    [(delivery,)] = eventually(lambda: backend.sql(failed, sku=sku), what="the failed delivery")
    shop.app.control.revoke(delivery, reply=True)
    mail_is_down.start()

    backend.sql(
        "UPDATE deliveries SET status = 'pending', finished_at = NULL, attempts = 0, reruns = 1"
        " WHERE id = CAST(:id AS uuid) RETURNING 1",
        id=delivery,
    )
    shop.app.send_task(
        "allocation.send_out_of_stock_notification", task_id=delivery, queue="allocation.events", declare=()
    )

    done = "SELECT 1 FROM deliveries WHERE status = 'done' AND payload->>'sku' = :sku"
    eventually(lambda: backend.sql(done, sku=sku), what="the mail")


def test_a_copy_that_this_release_cannot_read_is_answered_as_the_first_was(shop, sku, backend, broker):
    """Its headers grew on the way back, or the release before allowed more."""
    first = shop.send("allocate", "o1", sku, 1)
    assert first.get(timeout=30) == f"batch-{sku}"
    shop.app.AsyncResult(first.id).forget()
    copy = good("allocation.allocate", {"orderid": "o1", "sku": sku, "qty": 1}, first.id)
    copy["body"] = "not the base64 of anything that a task could read"
    copy["properties"]["delivery_info"]["redelivered"] = True
    with redis.Redis.from_url(broker.broker_url) as client:
        client.lpush("allocation.commands", json.dumps(copy))

    eventually(lambda: shop.app.AsyncResult(first.id).state == "SUCCESS", what="the answer to the copy")
