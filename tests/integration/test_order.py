"""A handler with `in_order_by` gets the deliveries of a key one after the other."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from local.waiting import eventually
from messaging.bus import MessageBus
from messaging.delivery import Delivery, Status, new_id
from messaging.messages import Event
from messaging.operator.waits import Waits
from messaging.options import Breaker, handler
from messaging.postgres.filters import DeliveryFilter
from messaging.postgres.transaction import Transaction
from messaging.unit_of_work import Raised
from messaging.worker import housekeeping
from messaging.worker.app import MessagingApp, check_options
from tests.integration.outbox import app_on, ask, receive, rows_read, sent, state
from tests.order.handlers import Moved

#: What ran, and which numbers fail.
ran: list[tuple[str, int]] = []
failing: set[int] = set()


@handler(max_retries=0, in_order_by="key")
def in_order(event: Moved, _uow: Any) -> None:
    """Leave a trace, unless it fails."""
    if event.number in failing:
        raise RuntimeError("the test says so")
    ran.append((event.key, event.number))


@pytest.fixture
def app(clean_database: str) -> Iterator[MessagingApp]:
    """An app with the handler."""
    ran.clear()
    failing.clear()
    yield from app_on(clean_database, events={Moved: [in_order]}, relay_grace_s=1)


def commit(app: MessagingApp, *events: Moved) -> list[str]:
    """Commit events in one transaction, without sending them; return the ids of their deliveries."""
    with Transaction(app.runtime.engine) as transaction:
        found = app.runtime.outbox.write(transaction, [Raised(one) for one in events], new_id(), new_id())
        transaction.commit()
    return [one.id for one in found]


def deliver(app: MessagingApp, *ids: str) -> BaseException | None:
    """Receive the messages of deliveries, one after the other."""
    error = None
    for delivery_id in ids:
        error = receive(app, delivery_id, "in_order")
    return error


def test_a_delivery_waits_for_the_earlier_one_of_its_key_and_is_sent_when_that_is_done(app: MessagingApp):
    first, second, other = commit(app, Moved("a", 1), Moved("a", 2), Moved("b", 1))

    deliver(app, second, other)
    assert ran == [("b", 1)]
    assert state(app, second) == "waiting"
    assert sent(app) == []
    deliver(app, first)
    assert sent(app) == [second]
    deliver(app, second)

    assert ran == [("b", 1), ("a", 1), ("a", 2)]


def test_a_failed_delivery_blocks_its_key_until_it_is_done_or_discarded(app: MessagingApp):
    failing.update({1, 3})
    first, second, third, fourth = commit(app, *(Moved("a", number) for number in (1, 2, 3, 4)))
    deliver(app, first, second, third, fourth)
    assert [state(app, one) for one in (first, second, third, fourth)] == ["failed"] + ["waiting"] * 3

    housekeeping.relay(app.dispatcher)
    assert sent(app) == []
    failing.discard(1)
    list(app.dispatcher.rerun(DeliveryFilter(ids=(first,)), "anna", 1))
    sent(app)
    deliver(app, first)
    assert sent(app) == [second]
    deliver(app, second)
    assert sent(app) == [third]
    deliver(app, third)
    assert state(app, third) == "failed"

    app.runtime.outbox.discard(DeliveryFilter(ids=(third,)), "anna", 1, "no longer needed")
    housekeeping.relay(app.dispatcher)
    assert sent(app) == [fourth]
    deliver(app, fourth)
    assert ran == [("a", 1), ("a", 2), ("a", 4)]


def test_a_corrected_copy_takes_its_originals_place(app: MessagingApp):
    failing.add(1)
    first, second = commit(app, Moved("a", 1), Moved("a", 2))
    deliver(app, first, second)

    copy = app.runtime.outbox.edit(first, Moved, {"number": 10}, "anna")
    deliver(app, second)
    assert state(app, second) == "waiting"
    deliver(app, copy.id)
    deliver(app, *sent(app))

    assert ran == [("a", 10), ("a", 2)]


def test_who_finds_its_predecessor_done_a_moment_later_is_not_forgotten(app: MessagingApp):
    """The first one ends between the second one's look and its being put aside."""
    first, second = commit(app, Moved("a", 1), Moved("a", 2))
    with Transaction(app.runtime.engine) as worker:
        # As in the worker of `second`, up to the moment where it is put aside.
        worker.read("SELECT FROM deliveries WHERE id = %s FOR UPDATE", (second,))
        deliver(app, first)
        assert sent(app) == []  # `second` does not wait yet
        worker.write("UPDATE deliveries SET status = 'waiting', waits_for = 'order' WHERE id = %s", (second,))
        worker.commit()

    deliver(app, second)  # a copy of its message finds nothing to do
    assert ran == [("a", 1)]
    housekeeping.relay(app.dispatcher)
    assert sent(app) == [second]


def test_positions_are_in_the_order_of_the_commits(app: MessagingApp):
    """A transaction with the same key waits for the first one's commit, with another key it does not."""
    outbox, engine = app.runtime.outbox, app.runtime.engine
    begun = threading.Event()

    def later() -> None:
        commit(app, Moved("b", 1))
        begun.set()
        commit(app, Moved("a", 2))

    with Transaction(engine) as first:
        outbox.write(first, [Raised(Moved("a", 1))], new_id(), new_id())
        first.read("SELECT 1")
        thread = threading.Thread(target=later)
        thread.start()
        assert begun.wait(10)
        waits = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        eventually(lambda: ask(app, waits) == [(1,)], 10, "a transaction that waits for the lane")
        first.commit()
    thread.join(10)

    rows = ask(app, "SELECT payload->>'key', payload->>'number' FROM deliveries ORDER BY position")
    assert [row for row in rows if row[0] == "a"] == [("a", "1"), ("a", "2")]


def test_transactions_with_the_same_keys_in_another_order_do_not_deadlock(app: MessagingApp):
    def write(keys: str) -> None:
        for _ in range(30):
            commit(app, *(Moved(key, 1) for key in keys))

    threads = [threading.Thread(target=write, args=(keys,)) for keys in ("abcde", "edcba")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert ask(app, "SELECT count(*) FROM deliveries") == [(300,)]


def test_an_operator_sees_what_is_blocked_by_which_and_how_many_wait(app: MessagingApp):
    failing.add(1)
    ids = commit(app, *(Moved("a", number) for number in (1, 2, 3)), Moved("b", 1), Moved("b", 2))
    deliver(app, *ids)

    lanes = app.runtime.lanes.blocked(10)
    assert [(one.handler, one.key, one.waiting, one.blocked_by, one.status) for one in lanes] == [
        ("in_order", "a", 2, ids[0], "failed"),
        ("in_order", "b", 1, ids[3], "failed"),
    ]
    assert lanes[0].last_error == "RuntimeError: the test says so"
    row = Delivery(ids[1], "Moved", {}, "in_order", "", "", status=Status.WAITING, waits_for="order")
    assert Waits(app.runtime, [row]).of(row) == f"waits for its turn: {ids[0]}, the first of a, is failed"


def test_deliveries_of_an_older_release_have_no_order(app: MessagingApp):
    first, second = commit(app, Moved("a", 1), Moved("a", 2))
    ask(app, "UPDATE deliveries SET lane = NULL, position = NULL RETURNING 1")

    deliver(app, second, first)

    assert ran == [("a", 2), ("a", 1)]


def test_a_release_whose_handler_keeps_no_order_any_more_sends_what_waited(
    app: MessagingApp, clean_database: str
):
    def in_order(_event: Moved, _uow: Any) -> None:
        """Have no order."""

    failing.add(1)
    first, second = commit(app, Moved("a", 1), Moved("a", 2))
    deliver(app, first, second)
    for next_release in app_on(clean_database, events={Moved: [in_order]}):
        housekeeping.relay(next_release.dispatcher)

        assert sent(next_release) == [second]


@pytest.mark.parametrize("key", ["", "x" * 5000, "ä" * 300])
def test_any_key_can_be_ordered_by(app: MessagingApp, key: str):
    ids = commit(app, Moved(key, 1), Moved(key, 2))

    deliver(app, *ids)

    assert {state(app, one) for one in ids} == {"done"}


def test_an_event_without_the_field_is_refused_when_the_app_is_made():
    @dataclass(frozen=True)
    class Other(Event):
        sku: str

    with pytest.raises(
        ValueError, match="in_order_by of the handler in_order is 'key', but the event Other has"
    ):
        check_options(MessageBus({}, {Other: [in_order]}))


def test_a_blocked_key_with_a_long_queue_costs_relay_and_workers_little(app: MessagingApp):
    failing.add(1)
    [first] = commit(app, Moved("a", 1))
    deliver(app, first)
    ask(
        app,
        "INSERT INTO deliveries (id, event_id, event_type, payload, handler, status, waits_for, due_at,"
        " grace_s, correlation_id, causation_id, lane, position)"
        " SELECT gen_random_uuid(), gen_random_uuid(), 'Moved', '{}', 'in_order', 'waiting', 'order', now(),"
        " 1, 'c', 'c', 'a', 1000 + n FROM generate_series(1, 100000) n RETURNING 1",
    )
    ask(app, "ANALYZE deliveries; SELECT 1")

    # Whoever ends an attempt looks for the first of the key.
    lanes, names = app.runtime.lanes, ["in_order", "its_older_name"]
    assert rows_read(app, lambda: [lanes.wake_head("a", names) for _ in range(10)]) < 1000
    began = time.monotonic()
    housekeeping.relay(app.dispatcher)
    assert time.monotonic() - began < 2  # a few milliseconds; seconds if it read each of them
    assert sent(app) == []

    failing.discard(1)
    list(app.dispatcher.rerun(DeliveryFilter(ids=(first,)), "anna", 1))
    sent(app)
    began = time.monotonic()
    deliver(app, first)
    assert time.monotonic() - began < 2
    assert len(sent(app)) == 1


def test_the_relay_visits_only_keys_in_which_deliveries_wait(app: MessagingApp):
    ask(
        app,
        "INSERT INTO deliveries (id, event_id, event_type, payload, handler, due_at, grace_s, correlation_id,"
        " causation_id, lane, position)"
        " SELECT gen_random_uuid(), gen_random_uuid(), 'Moved', '{}', 'in_order', now() + interval '1 h',"
        " 1, 'c', 'c', 'key ' || n, n FROM generate_series(1, 5000) n RETURNING 1",
    )
    [forgotten] = commit(app, Moved("z", 1))
    ask(app, "UPDATE deliveries SET status = 'waiting', waits_for = 'order' WHERE lane = 'z' RETURNING 1")
    ask(app, "ANALYZE deliveries; SELECT 1")

    assert rows_read(app, lambda: housekeeping.relay(app.dispatcher)) < 200

    assert sent(app) == [forgotten]


def test_the_relay_visits_some_keys_at_a_time_and_comes_to_all(
    app: MessagingApp, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("messaging.postgres.order.LANES", 2)
    failing.add(1)
    behind = []
    for key in "abcde":
        first, second = commit(app, Moved(key, 1), Moved(key, 2))
        deliver(app, first, second)
        behind.append(second)
    [forgotten] = commit(app, Moved("f", 3))
    ask(app, "UPDATE deliveries SET status = 'waiting', waits_for = 'order' WHERE lane = 'f' RETURNING 1")

    found = []
    for _ in range(3):
        housekeeping.relay(app.dispatcher)
        found.append(sent(app))
    assert found == [[], [], [forgotten]]

    ask(app, "UPDATE deliveries SET status = 'done', finished_at = now() WHERE status = 'failed' RETURNING 1")
    for _ in range(4):
        housekeeping.relay(app.dispatcher)
    assert set(sent(app)) >= set(behind)


LOCK_WAITS = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"


@handler(max_retries=0, in_order_by="key")
def renamed(event: Moved, uow: Any) -> None:
    """Be the same handler in the next release."""
    in_order(event, uow)


def test_the_order_is_kept_while_a_deploy_renames_the_handler(app: MessagingApp, clean_database: str):
    """The positions of both releases are drawn under the same lock."""
    for release in app_on(clean_database, {Moved: [renamed]}, {"in_order": "renamed"}, relay_grace_s=1):
        committed: list[str] = []

        def raise_in_old(committed: list[str] = committed) -> None:
            committed.extend(commit(app, Moved("a", 2)))

        with Transaction(release.runtime.engine) as transaction:
            [first] = release.runtime.outbox.write(transaction, [Raised(Moved("a", 1))], new_id(), new_id())
            transaction.read("SELECT 1")
            other = threading.Thread(target=raise_in_old)
            other.start()
            eventually(lambda: ask(app, LOCK_WAITS) == [(1,)], 20, "the older release waiting for the newer")
            transaction.commit()
        other.join(20)

        receive(release, committed[0], "renamed")
        assert ran == []
        assert state(app, committed[0]) == "waiting"
        receive(release, first.id, "renamed")
        assert sent(release) == committed
        receive(release, committed[0], "renamed")
        assert ran == [("a", 1), ("a", 2)]


def test_a_corrected_copy_of_a_renamed_handlers_delivery_keeps_its_place(
    app: MessagingApp, clean_database: str
):
    failing.add(1)
    first, second = commit(app, Moved("a", 1), Moved("a", 2))
    deliver(app, first, second)
    for release in app_on(clean_database, {Moved: [renamed]}, {"in_order": "renamed"}, relay_grace_s=1):
        copy = release.runtime.outbox.edit(first, Moved, {"number": 3}, "ann")
        receive(release, second, "renamed")
        assert ran == []
        receive(release, copy.id, "renamed")
        assert sent(release) == [second]
        receive(release, second, "renamed")
        assert ran == [("a", 3), ("a", 2)]


def test_a_key_that_is_blocked_under_an_old_name_is_left_alone_and_what_blocks_it_is_named(
    app: MessagingApp, clean_database: str
):
    failing.add(1)
    first, second = commit(app, Moved("a", 1), Moved("a", 2))
    deliver(app, first, second)
    for release in app_on(clean_database, {Moved: [renamed]}, {"in_order": "renamed"}, relay_grace_s=1):
        [third] = commit(release, Moved("a", 3))
        receive(release, third, "renamed")
        assert [state(release, one) for one in (first, second, third)] == ["failed", "waiting", "waiting"]

        housekeeping.relay(release.dispatcher)
        assert sent(release) == []
        [lane] = release.runtime.lanes.blocked(10)
        assert (lane.handler, lane.waiting, lane.blocked_by, lane.status) == ("renamed", 2, first, "failed")
        assert {one.id for one in release.runtime.lanes.blockers([second, third]).values()} == {first}

        release.runtime.outbox.discard(DeliveryFilter(ids=(first,)), "anna", 1, "no longer needed")
        housekeeping.relay(release.dispatcher)
        assert sent(release) == [second]
        receive(release, second, "renamed")
        assert sent(release) == [third]


def test_the_first_of_a_key_is_tried_at_once_after_the_pause_of_a_breaker(clean_database: str):
    """However many wait behind it: only the first ones wait for the breaker, the others for their turn."""

    @handler(max_retries=50, in_order_by="key", breaker=Breaker(failures=1, pause_s=60, pause_max_s=60))
    def stopped(event: Moved, uow: Any) -> None:
        in_order(event, uow)

    def tried(app: MessagingApp) -> list[str]:
        """End the breaker's pause and have a worker take what the relay sends."""
        ask(app, "UPDATE breakers SET until = clock_timestamp() - interval '1 ms' RETURNING 1")
        housekeeping.relay(app.dispatcher)
        ids = sent(app)
        for delivery_id in ids:
            receive(app, delivery_id, "stopped")
        return ids

    ran.clear()
    failing.clear()
    for app in app_on(clean_database, events={Moved: [stopped]}, relay_grace_s=1, relay_interval_s=1):
        first, *others = commit(app, *(Moved("a", number) for number in range(1, 11)))
        failing.add(1)
        for delivery_id in (first, *others):
            receive(app, delivery_id, "stopped")
        assert tried(app) == [first]  # it fails, and waits for longer than the others now
        assert ran == []
        failing.clear()

        assert tried(app) == [first]
        while next_ones := sent(app):
            for delivery_id in next_ones:
                receive(app, delivery_id, "stopped")

        assert ran == [("a", number) for number in range(1, 11)]
