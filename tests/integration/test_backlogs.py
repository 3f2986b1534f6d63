"""A backlog that came since PostgreSQL last looked at the table slows nothing down.

Until its next ANALYZE the planner takes the index of a state for as short as it was then, and may read all of
it for one row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from celery.app.task import Context

from allocation.domain.events import OutOfStock
from messaging.delivery import Delivery, new_id
from messaging.options import handler
from messaging.postgres.filters import DeliveryFilter
from messaging.postgres.pauses import Scope
from messaging.postgres.transaction import Transaction
from messaging.postgres.waiting import Queue
from messaging.unit_of_work import Raised
from messaging.worker import housekeeping
from messaging.worker.app import MessagingApp
from reliable_celery.groups.member import Member
from tests.integration.outbox import app_on, ask, receive, rows_read, sent, state
from tests.order.handlers import Moved

DONE, BACKLOG = 50_000, 10_000
#: Rows and entries of indexes that a step may read; one that reads the backlog reads as many as that has.
FEW = 1_000

FILL = """
INSERT INTO deliveries (id, event_id, event_type, payload, handler, status, waits_for, lane, position,
                        attempts, due_at, grace_s, correlation_id, causation_id, created_at, finished_at,
                        last_error)
SELECT gen_random_uuid(), gen_random_uuid(), 'OutOfStock', '{"sku": "LAMP"}', 'an_earlier_one', :status,
       :waits_for, CASE WHEN :waits_for = 'order' THEN 'lane ' || n % 50 END,
       CASE WHEN :waits_for = 'order' THEN nextval('deliveries_position') END,
       0, now() + interval '1 hour', 15, 'c' || n, 'c' || n, now() - interval '1 day',
       CASE WHEN :status NOT IN ('pending', 'waiting') THEN now() - interval '1 hour' END, 'an error'
FROM generate_series(1, CAST(:count AS integer)) n RETURNING 1"""


def succeed(_event: OutOfStock, _uow: Any) -> None:
    """Do nothing."""


def fail(_event: OutOfStock, _uow: Any) -> None:
    """Fail."""
    raise ZeroDivisionError


@handler(shares_transaction=True)
def share(_event: OutOfStock, _uow: Any) -> None:
    """Do nothing, together with others."""


@handler(in_order_by="key", max_concurrent=2)
def in_order(_event: Moved, _uow: Any) -> None:
    """Do nothing, one after the other."""


@pytest.fixture(scope="module")
def app(new_database: Callable[[], str]) -> Iterator[MessagingApp]:
    """An app whose table was last analyzed when all its deliveries were done; now there are many others."""
    handlers = {OutOfStock: [succeed, fail, share], Moved: [in_order]}
    # No delivery of one test is due in another.
    for app in app_on(new_database(), events=handlers, relay_grace_s=600, relay_grace_max_s=600):
        ask(app, FILL, status="done", waits_for=None, count=DONE)
        with app.runtime.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("ALTER TABLE deliveries SET (autovacuum_enabled = off)")
            connection.exec_driver_sql("VACUUM (ANALYZE) deliveries")
        for status in "pending", "failed":
            ask(app, FILL, status=status, waits_for=None, count=BACKLOG)
        for waits_for in "order", "place", "turn":
            ask(app, FILL, status="waiting", waits_for=waits_for, count=BACKLOG)
        yield app


def owed(app: MessagingApp, name: str, *events: OutOfStock | Moved) -> list[str]:
    """Commit events; return the ids of a handler's deliveries, whose messages are lost."""
    raised = [Raised(one) for one in events or (OutOfStock("LAMP"),)]
    with Transaction(app.runtime.engine) as transaction:
        deliveries = app.runtime.outbox.write(transaction, raised, new_id(), new_id())
        transaction.commit()
    return [one.id for one in deliveries if one.handler == name]


def test_an_attempt(app: MessagingApp):
    [delivery_id] = owed(app, "succeed")

    assert rows_read(app, lambda: receive(app, delivery_id, "succeed")) < FEW
    assert state(app, delivery_id) == "done"


def test_a_failed_attempt(app: MessagingApp):
    [delivery_id] = owed(app, "fail")

    assert rows_read(app, lambda: receive(app, delivery_id, "fail")) < FEW
    assert ask(app, "SELECT attempts FROM deliveries WHERE id = CAST(:id AS uuid)", id=delivery_id) == [(1,)]


def test_an_attempt_after_a_worker_may_have_died(app: MessagingApp):
    [delivery_id] = owed(app, "succeed")

    assert rows_read(app, lambda: receive(app, delivery_id, "succeed", redelivered=True)) < FEW
    assert state(app, delivery_id) == "done"


def test_deliveries_that_share_a_transaction(app: MessagingApp):
    ids = owed(app, "share", *(OutOfStock(f"LAMP-{n}") for n in range(8)))
    task = app.tasks["allocation.share"]
    members = [Member(task, Context(id=one, hostname="worker", delivery_info={}), (), {}) for one in ids]

    assert rows_read(app, lambda: task.together.prepare(members)) < FEW
    assert {state(app, one) for one in ids} == {"done"}


def test_a_lane(app: MessagingApp):
    first, second = owed(app, "in_order", Moved("a", 1), Moved("a", 2))

    assert rows_read(app, lambda: receive(app, second, "in_order")) < FEW
    assert state(app, second) == "waiting"
    assert rows_read(app, lambda: receive(app, first, "in_order")) < FEW
    assert sent(app)[-1] == second


def test_a_pause(app: MessagingApp):
    [delivery_id] = owed(app, "succeed")
    app.runtime.pauses.add(Scope.HANDLER, ("succeed",), "anna", "a test")
    app.runtime.pauses.forget()
    try:
        assert rows_read(app, lambda: receive(app, delivery_id, "succeed")) < FEW
        assert state(app, delivery_id) == "waiting"
    finally:
        app.runtime.pauses.remove(Scope.HANDLER, ("succeed",), "anna", None)
        app.runtime.pauses.forget()


def test_reruns(app: MessagingApp):
    """Those of handlers that this release lacks fail again at once."""
    assert rows_read(app, lambda: list(app.dispatcher.rerun(DeliveryFilter(), "anna", 5))) < FEW
    assert ask(app, "SELECT count(*) FROM actions WHERE actor = 'anna' AND action = 'rerun'") == [(5,)]


def test_reruns_by_the_schedule(app: MessagingApp):
    assert rows_read(app, lambda: housekeeping.rerun(app.dispatcher)) < FEW
    assert ask(app, "SELECT count(*) > 0 FROM actions WHERE actor = 'schedule'") == [(True,)]


def test_discarding(app: MessagingApp):
    discard = app.runtime.outbox.discard

    assert rows_read(app, lambda: discard(DeliveryFilter(), "anna", 5, "no longer needed")) < FEW
    assert ask(app, "SELECT count(*) FROM deliveries WHERE status = 'discarded'") == [(5,)]


def test_the_relays_search(app: MessagingApp):
    ids = owed(app, "succeed", *(OutOfStock(f"LAMP-{n}") for n in range(5)))
    ask(app, "UPDATE deliveries SET due_at = now() WHERE id = ANY(CAST(:ids AS uuid[])) RETURNING 1", ids=ids)
    taken: list[Delivery] = []

    assert rows_read(app, lambda: taken.extend(app.runtime.outbox.take_due(100, 60))) < FEW
    assert {one.id for one in taken} == set(ids)


@pytest.mark.parametrize("why", ["order", "place", "turn"])
def test_waking(app: MessagingApp, why: str):
    woken: list[Delivery] = []
    queue = Queue(why, "an_earlier_one", "OutOfStock")

    assert rows_read(app, lambda: woken.extend(app.runtime.waiting.wake(queue, 5))) < FEW
    assert len(woken) == 5
