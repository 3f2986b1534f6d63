"""Deliveries that arrived together share a transaction; one that cannot is made by its task, alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from celery.app.task import Context

from allocation.domain.commands import Allocate, ChangeBatchQuantity, CreateBatch
from allocation.domain.events import Deallocated, OutOfStock
from messaging.delivery import new_id
from messaging.options import handler
from messaging.postgres.inbox import CommandJob
from messaging.postgres.pauses import Scope
from messaging.worker.app import MessagingApp
from reliable_celery.groups.member import Member
from tests.integration.outbox import app_on, ask, failing_as_it_begins, put, receive, state
from tests.integration.statements import recorded

Behaviour = Callable[..., None]  # (event, unit of work)

#: What the handler under test does with a SKU; nothing if it is not here.
behaviour: dict[str, Behaviour] = {}
#: The SKUs that it was called with.
calls: list[str] = []


@handler(shares_transaction=True)
def count(event: OutOfStock, uow: Any) -> None:
    """Note the call."""
    calls.append(event.sku)
    uow.transaction.write("INSERT INTO products VALUES (%s)", (event.sku,))
    if event.sku in behaviour:
        behaviour[event.sku](event, uow)


def count_alone(event: OutOfStock, uow: Any) -> None:
    """Note the call, in a transaction of its own."""
    count(event, uow)


@pytest.fixture
def app(clean_database: str) -> Iterator[MessagingApp]:
    """An app with both handlers."""
    behaviour.clear()
    calls.clear()
    yield from app_on(clean_database, events={OutOfStock: [count, count_alone]}, event_max_retries=1)


def owed(app: MessagingApp, sku: str, handler: str = "count", **facts: Any) -> str:
    """Write a pending delivery without attempts; return its id."""
    delivery_id = put(app, sku=sku, handler=handler, status="pending", **facts)
    ask(app, "UPDATE deliveries SET attempts = 0 WHERE id = CAST(:id AS uuid) RETURNING 1", id=delivery_id)
    return delivery_id


def together(app: MessagingApp, *delivery_ids: str, handler: str = "count") -> set[str]:
    """Make deliveries whose messages arrived together; return the ids of those that were made."""
    task = app.tasks[f"allocation.{handler}"]
    members = [
        Member(task, Context(id=each, hostname="worker", delivery_info={"redelivered": False}), (), {})
        for each in delivery_ids
    ]
    prepared: set[str] = task.together.prepare(members)
    return prepared


def failed(_event: OutOfStock, _uow: Any) -> None:
    raise ZeroDivisionError


def test_they_are_made_in_one_transaction_and_their_tasks_find_them_done(app: MessagingApp):
    ids = [owed(app, sku) for sku in ("CHAIR", "LAMP", "TABLE")]

    assert together(app, *ids) == set(ids)

    assert ask(app, "SELECT count(DISTINCT finished_at), min(attempts) FROM deliveries") == [(1, 1)]
    assert [receive(app, each, "count") for each in ids] == [None] * 3
    assert calls == ["CHAIR", "LAMP", "TABLE"]
    assert ask(app, "SELECT status, attempts FROM deliveries GROUP BY 1, 2") == [("done", 1)]


def test_one_whose_handler_fails_is_undone_alone_and_counted_once_by_its_task(app: MessagingApp):
    behaviour["LAMP"] = failed
    ids = [owed(app, sku) for sku in ("CHAIR", "LAMP", "TABLE")]

    assert together(app, *ids) == {ids[0], ids[2]}

    assert ask(app, "SELECT sku FROM products ORDER BY 1") == [("CHAIR",), ("TABLE",)]
    assert state(app, ids[1]) == "pending"
    receive(app, ids[1], "count")
    assert ask(app, "SELECT attempts FROM deliveries WHERE status = 'pending'") == [(1,)]
    receive(app, ids[1], "count")
    assert state(app, ids[1]) == "failed"
    assert ask(app, "SELECT number FROM attempts ORDER BY 1") == [(1,), (2,)]


def test_an_error_of_the_database_leaves_all_of_them_to_their_tasks(app: MessagingApp):
    behaviour["LAMP"] = lambda _event, uow: uow.transaction.read("SELECT 1 / 0")
    ids = [owed(app, sku) for sku in ("CHAIR", "LAMP")]

    assert together(app, *ids) == set()

    assert ask(app, "SELECT count(*) FROM products") == [(0,)]
    receive(app, ids[0], "count")
    assert [state(app, each) for each in ids] == ["done", "pending"]


@pytest.mark.parametrize("status", ["done", "failed", "discarded", "waiting"])
def test_one_that_is_not_pending_is_left_out(app: MessagingApp, status: str):
    ids = [owed(app, "LAMP"), put(app, sku="CHAIR", handler="count", status=status)]

    assert together(app, *ids) == {ids[0]}
    assert calls == ["LAMP"]


def test_one_of_which_an_earlier_attempt_is_open_is_made_alone(app: MessagingApp):
    """Its worker may have died, so its start is recorded first."""
    ids = [owed(app, "LAMP"), owed(app, "CHAIR")]
    ask(
        app,
        "INSERT INTO open_attempts (token, delivery_id, run, state, worker)"
        " VALUES (CAST(:token AS uuid), CAST(:id AS uuid), 0, 'begun', 'worker') RETURNING 1",
        token=new_id(),
        id=ids[1],
    )

    assert together(app, *ids) == {ids[0]}


def test_one_that_another_worker_has_locked_is_left_out(app: MessagingApp):
    ids = [owed(app, "LAMP"), owed(app, "CHAIR")]
    with app.runtime.engine.begin() as other:
        other.exec_driver_sql("SELECT FROM deliveries WHERE payload->>'sku' = 'CHAIR' FOR UPDATE")

        assert together(app, *ids) == {ids[0]}


def test_a_message_that_names_another_handler_is_left_out(app: MessagingApp):
    ids = [owed(app, "LAMP"), owed(app, "CHAIR", handler="count_alone")]

    assert together(app, *ids) == {ids[0]}
    assert state(app, ids[1]) == "pending"


def test_an_id_that_is_none_is_left_to_its_task(app: MessagingApp):
    mine = owed(app, "LAMP")

    assert together(app, mine, "no id", mine.upper()) == {mine.upper()}
    assert calls == ["LAMP"]


def test_an_event_that_cannot_be_read_is_left_to_its_task(app: MessagingApp):
    ids = [owed(app, "LAMP"), owed(app, "CHAIR")]
    ask(app, "UPDATE deliveries SET payload = '{}' WHERE payload->>'sku' = 'CHAIR' RETURNING 1")

    assert together(app, *ids) == {ids[0]}


def test_none_is_made_together_while_something_is_paused(app: MessagingApp):
    app.runtime.pauses.add(Scope.EVENT, ["BatchCreated"], "ann", "night")
    app.runtime.pauses.forget()

    assert together(app, owed(app, "LAMP"), owed(app, "CHAIR")) == set()
    assert calls == []


def test_a_handler_that_does_not_say_so_takes_no_part(app: MessagingApp):
    assert app.tasks["allocation.count_alone"].together is None
    assert app.tasks["allocation.count"].together is not None


def test_lines_of_different_products_are_allocated_again_in_three_messages(app: MessagingApp):
    """One claims the deliveries, one reads the products, and one writes and commits."""
    bus, unit_of_work = app.runtime.project.bus, app.runtime.unit_of_work
    for sku in ("CHAIR", "LAMP", "TABLE"):
        batches = [CreateBatch(f"{which}-{sku}", sku, 5) for which in ("first", "second")]
        for number, command in enumerate([*batches, Allocate("o1", sku, 2)]):
            job = CommandJob(f"{sku}-{number}", command, "c")
            bus.handle_command(command, [], unit_of_work(job))
    deliveries: list[Any] = []
    for sku in ("CHAIR", "LAMP", "TABLE"):
        correction = ChangeBatchQuantity(f"first-{sku}", 1)
        bus.handle_command(correction, deliveries, unit_of_work(CommandJob(f"{sku}-4", correction, "c")))
    ids = [each.id for each in deliveries if isinstance(each.event, Deallocated)]

    with recorded(app) as messages:
        app.runtime.pauses.seen()
        messages.clear()
        assert together(app, *ids, handler="reallocate") == set(ids)

    assert len(messages) == 3
    lines = ask(app, "SELECT batch_reference FROM allocations ORDER BY 1")
    assert lines == [("second-CHAIR",), ("second-LAMP",), ("second-TABLE",)]
    assert ask(app, "SELECT status, attempts FROM deliveries GROUP BY 1, 2") == [("done", 1)]


def test_one_whose_unit_of_work_fails_as_it_begins_leaves_the_others_alone(
    app: MessagingApp, monkeypatch: pytest.MonkeyPatch
):
    project = replace(app.runtime.project, unit_of_work=failing_as_it_begins())
    monkeypatch.setattr(app.runtime, "project", project)
    ids = [owed(app, sku) for sku in ("CHAIR", "LAMP", "TABLE")]

    assert len(together(app, *ids)) == 2


def test_a_group_of_slow_handlers_stays_within_the_time_limit_of_one(clean_database: str):
    limits = {"task_time_limit_s": 1, "smtp_timeout_s": 0.5}
    for app in app_on(clean_database, events={OutOfStock: [count]}, **limits):
        ids = [owed(app, f"SLOW-{number}") for number in range(6)]
        behaviour.update(dict.fromkeys((f"SLOW-{number}" for number in range(6)), slow))

        made = together(app, *ids)

        assert 1 <= len(made) <= 3


def slow(_event: OutOfStock, _uow: Any) -> None:
    time.sleep(0.2)
