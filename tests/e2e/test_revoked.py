"""The sender of a terminated or revoked command gets an answer that matches what happened."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import uuid4

import pytest
import redis
from celery import exceptions
from sqlalchemy import create_engine, text

from allocation.client import Allocate, outbox
from local.waiting import eventually
from messaging.client.answers import Outcome
from messaging.client.databases import SqlAlchemyDatabase
from messaging.client.pace import Pace
from tests.e2e.hostile_messages import good

pytestmark = pytest.mark.usefixtures("worker")


@pytest.fixture(scope="module")
def broker(broker_of):
    """One kind of broker is enough: it does not matter here."""
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


def test_a_command_that_was_terminated_during_its_commit_is_not_answered_as_revoked(shop, sku, backend):
    """Its process is gone, but the server can still finish the transaction.

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


def test_a_command_that_was_terminated_before_its_commit_is_revoked_without_effect(shop, sku, backend):
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


def test_a_command_that_one_worker_carries_out_is_not_answered_as_revoked_by_another(shop, sku, backend):
    """Celery's control command reaches every worker, including those without the message."""
    second = backend.worker("second", concurrency=1)
    try:
        with in_progress(backend, "SELECT FROM products WHERE sku = :sku FOR UPDATE", sku=sku):
            sent = shop.send("allocate", "o1", sku, 1)
            eventually(lambda: waiting(backend, "BEGIN"), what="the command at the lock")
            assert len(shop.app.control.revoke(sent.id, reply=True, timeout=10, limit=2)) == 2
        assert sent.get(timeout=30) == f"batch-{sku}"
    finally:
        second.stop()


def test_a_revoked_repeat_gets_the_first_result(shop, sku):
    task_id, key, stock = str(uuid4()), f"stock-{sku}", {"ref": f"more-{sku}", "sku": sku, "qty": 1}
    shop.ask("create_batch", key=key, **stock)
    shop.app.control.revoke(task_id, reply=True)

    assert shop.send("create_batch", key=key, task_id=task_id, **stock).get(timeout=30) is None


def test_many_commands_that_were_terminated_halfway_each_get_their_own_outcome(shop, sku, backend):
    """The earlier ones were carried out, so `revoked` for all would be wrong."""
    other = f"DESK-{uuid4()}"
    shop.ask("create_batch", ref=f"batch-{other}", sku=other, qty=1)
    lines = [["allocation.allocate", {"orderid": "o1", "sku": one, "qty": 1}] for one in (sku, other)]
    lines += [["allocation.allocate", {"orderid": "o1"}], "no command"]
    with in_progress(backend, "SELECT FROM products WHERE sku = :sku FOR UPDATE", sku=other):
        sent = shop.send("many", lines)
        eventually(lambda: waiting(backend, "BEGIN"), what="the second command at the lock")
        shop.app.control.revoke(sent.id, terminate=True, signal="SIGKILL")
        first, *others = sent.get(timeout=30)

    assert first == {"id": f"{sent.id}.0", "result": f"batch-{sku}"}
    assert [outcome["error"]["type"] for outcome in others] == [
        "TaskRevokedError",
        "TaskRevokedError",
        "InvalidMessage",
    ]
    assert allocated(backend, sku) == [("o1",)]
    assert allocated(backend, other) == []


def test_many_commands_that_were_revoked_before_their_start_are_all_revoked(shop, sku, backend):
    task_id = str(uuid4())
    shop.app.control.revoke(task_id, reply=True)
    line = ["allocation.allocate", {"orderid": "o1", "sku": sku, "qty": 1}]

    with pytest.raises(exceptions.TaskRevokedError):
        shop.send("many", [line], task_id=task_id).get(timeout=30)
    assert allocated(backend, sku) == []


def test_commands_of_an_outbox_whose_message_was_revoked_are_not_sent_again(
    shop, sku, backend, broker, tmp_path
):
    """An operator has revoked it in order to stop them."""
    outcomes: list[Outcome] = []
    engine = create_engine(f"sqlite:///{tmp_path / 'shop.db'}")
    relay = outbox.relay(
        SqlAlchemyDatabase(engine), broker.broker_url, broker.result_backend_url,
        on_answer=lambda outcome, _session: outcomes.append(outcome), pace=Pace(interval_s=0.05),
    )  # fmt: skip
    keys = [f"{sku}-{number}" for number in range(2)]
    with engine.begin() as connection:
        outbox.create_table(connection)
        for key in keys:
            outbox.send(connection, Allocate(key, sku, 1), key=key)
    with in_progress(backend, "SELECT FROM products WHERE sku = :sku FOR UPDATE", sku=sku):
        relay.step()
        eventually(lambda: waiting(backend, "BEGIN"), what="the first command at the lock")
        with engine.connect() as connection:
            [sent] = connection.execute(text("SELECT DISTINCT task_id FROM command_outbox")).scalars()
        shop.app.control.revoke(sent, terminate=True, signal="SIGKILL")
        eventually(lambda: relay.step() and len(outcomes) == 2, what="the answers")

    assert relay.drain(10)
    assert [(outcome.key, str(outcome.error)) for outcome in outcomes] == [
        (key, "TaskRevokedError: terminated") for key in keys
    ]
    assert allocated(backend, sku) == []
    engine.dispose()


@pytest.mark.parametrize(("task", "arguments"), [("allocate", ()), ("many", ("no list",))])
def test_a_revoked_invalid_message_is_answered_once(shop, task, arguments):
    """Its key or its list is invalid; it must not be redelivered for ever."""
    task_id = str(uuid4())
    shop.app.control.revoke(task_id, reply=True)

    with pytest.raises(exceptions.TaskRevokedError):
        shop.send(task, *arguments, task_id=task_id, key="two\nlines").get(timeout=30)


@pytest.mark.parametrize("limit", ["soft_time_limit", "time_limit"])
def test_a_senders_time_limit_does_not_stop_its_command(shop, sku, backend, limit):
    """A soft limit raises at any moment, even after the commit; a short hard one would kill every run."""
    with in_progress(backend, "SELECT FROM products WHERE sku = :sku FOR UPDATE", sku=sku):
        sent = shop.app.send_task(
            "allocation.allocate",
            ("o1", sku, 1),
            queue="allocation.commands",
            declare=(),
            **{limit: 0.001},
        )
        eventually(lambda: waiting(backend, "BEGIN"), what="the command at the lock")
        with pytest.raises(exceptions.TimeoutError):
            sent.get(timeout=0.6)

    assert sent.get(timeout=30) == f"batch-{sku}"


def test_a_senders_time_limit_does_not_stop_housekeeping(shop, worker, backend, broker):
    """Its message would be redelivered for ever, and kill a process each time."""
    with in_progress(backend, "LOCK TABLE heartbeats IN EXCLUSIVE MODE"):
        sent = shop.app.send_task(
            "allocation.prune", queue="allocation.commands", declare=(), time_limit=0.001
        )
        eventually(lambda: waiting(backend, "heartbeats"), what="the note that it has run")

    with redis.Redis.from_url(broker.broker_url) as client:
        eventually(
            lambda: not client.llen("allocation.commands") and not client.hlen("allocation.unacked"),
            what="a settled message",
        )
    assert f"{sent.id}] took longer than" not in worker.log_text()


def test_a_revoked_delivery_is_still_made(shop, sku, backend, mail_is_down):
    """All its messages have its id; to stop it, an operator discards it."""
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


def test_a_copy_that_this_release_cannot_read_gets_the_first_answer(shop, sku, backend, broker):
    """Its headers grew at the redelivery, or the previous release allowed more."""
    first = shop.send("allocate", "o1", sku, 1)
    assert first.get(timeout=30) == f"batch-{sku}"
    shop.app.AsyncResult(first.id).forget()
    copy = good("allocation.allocate", {"orderid": "o1", "sku": sku, "qty": 1}, first.id)
    copy["body"] = "not the base64 of anything that a task could read"
    copy["properties"]["delivery_info"]["redelivered"] = True
    with redis.Redis.from_url(broker.broker_url) as client:
        client.lpush("allocation.commands", json.dumps(copy))

    eventually(lambda: shop.app.AsyncResult(first.id).state == "SUCCESS", what="the answer to the copy")
