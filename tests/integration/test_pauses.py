"""A pause stops a handler everywhere, uses up no attempts, and ends when an operator resumes it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest
from sqlalchemy import create_engine, event, text
from sqlalchemy.exc import OperationalError

from allocation.domain.events import OutOfStock
from local.waiting import eventually
from messaging.operator.check import Checkup, Notice
from messaging.operator.deliveries import DeliveryQueries
from messaging.operator.pausing import Pausing, WrongPause, active, shown
from messaging.postgres.attempts import Attempt
from messaging.postgres.filters import DeliveryFilter
from messaging.postgres.pauses import SEEN_S, Pause, Pauses, Scope
from messaging.postgres.transaction import Transaction
from messaging.worker import housekeeping
from messaging.worker.app import MessagingApp
from tests.integration.outbox import app_on, ask, put, receive, sent, state
from tests.integration.statements import recorded

STOPPED, OTHER = "stopped_handler", "other_handler"

#: The handlers that ran, and what the stopped one does while it runs.
ran: list[str] = []
while_running = threading.Event()
may_end = threading.Event()


def stopped_handler(event: OutOfStock, _uow: Any) -> None:
    """Leave a trace; wait for the test if the event says so."""
    ran.append(STOPPED)
    if event.sku == "SLOW":
        while_running.set()
        assert may_end.wait(20)


def other_handler(_event: OutOfStock, _uow: Any) -> None:
    """Leave a trace."""
    ran.append(OTHER)


@pytest.fixture
def app(clean_database: str) -> Iterator[MessagingApp]:
    """An app with two handlers of `OutOfStock`."""
    ran.clear()
    while_running.clear()
    may_end.clear()
    yield from app_on(clean_database, events={OutOfStock: [stopped_handler, other_handler]}, relay_grace_s=1)


@pytest.fixture
def pausing(app: MessagingApp) -> Pausing:
    """The operator's hand on it."""
    return Pausing(app.dispatcher)


def pending(app: MessagingApp, handler: str = STOPPED, sku: str = "LAMP") -> str:
    """Insert a pending delivery without attempts; return its id."""
    delivery_id = put(app, handler=handler, status="pending", sku=sku)
    ask(app, "UPDATE deliveries SET attempts = 0 WHERE id = CAST(:id AS uuid) RETURNING 1", id=delivery_id)
    return delivery_id


def attempts(app: MessagingApp, delivery_id: str) -> int:
    return int(ask(app, "SELECT attempts FROM deliveries WHERE id = CAST(:id AS uuid)", id=delivery_id)[0][0])


@pytest.mark.parametrize(
    ("scope", "name", "others"),
    [(Scope.HANDLER, STOPPED, [OTHER]), (Scope.EVENT, "OutOfStock", []), (Scope.ALL, "", [])],
)
def test_a_pause_stops_its_handlers_and_no_others_without_an_attempt(
    app: MessagingApp, pausing: Pausing, scope: Scope, name: str, others: list[str]
):
    waiting = pending(app)
    said = pausing.pause(scope, name, "anna", "the mail server is being moved")
    later, other = pending(app), pending(app, OTHER)

    receive(app, waiting, STOPPED)
    receive(app, later, STOPPED)
    receive(app, other, OTHER)

    assert "1 pending deliveries wait" in said
    assert ran == others
    assert (state(app, waiting), state(app, later)) == ("waiting", "waiting")
    assert attempts(app, later) == 0


def test_what_waited_is_delivered_after_the_pause_is_over(app: MessagingApp, pausing: Pausing):
    pausing.pause(Scope.HANDLER, STOPPED, "anna", "moving")
    ids = [pending(app) for _ in range(3)]
    for delivery_id in ids:
        receive(app, delivery_id, STOPPED)
    housekeeping.relay(app.dispatcher)
    assert sent(app) == []

    pausing.resume(Scope.HANDLER, STOPPED, "bert")
    assert sent(app, "allocation.housekeeping")
    housekeeping.relay(app.dispatcher)
    assert sorted(sent(app)) == sorted(ids)
    app.runtime.pauses.forget()
    for delivery_id in ids:
        receive(app, delivery_id, STOPPED)

    assert ran == [STOPPED] * 3
    assert {state(app, one) for one in ids} == {"done"}
    assert ask(app, "SELECT actor, action, subject, reason FROM audit ORDER BY id") == [
        ("anna", "pause", f"handler {STOPPED}", "moving"),
        ("bert", "resume", f"handler {STOPPED}", None),
    ]


def test_a_process_notices_a_pause_and_its_end_within_a_second_or_so(app: MessagingApp, pausing: Pausing):
    receive(app, pending(app), STOPPED)
    pausing.pause(Scope.HANDLER, STOPPED, "anna", "moving")

    def holds() -> bool:
        one = pending(app)
        receive(app, one, STOPPED)
        return state(app, one) == "waiting"

    began = time.monotonic()
    eventually(holds, 10, "a delivery that is put aside", every=0.05)
    assert time.monotonic() - began < SEEN_S + 2
    pausing.resume(Scope.HANDLER, STOPPED, "anna")
    began = time.monotonic()
    eventually(lambda: not holds(), 10, "a delivery that runs", every=0.05)
    assert time.monotonic() - began < SEEN_S + 2


def test_no_thread_of_a_restarted_worker_runs_what_is_paused(app: MessagingApp, pausing: Pausing):
    """The others wait while one of them reads the pauses for the first time."""
    pausing.pause(Scope.HANDLER, STOPPED, "anna", "moving")
    reading, may_read = threading.Event(), threading.Event()

    class SlowlyRead(Pauses):
        def active(self) -> list[Pause]:
            reading.set()
            assert may_read.wait(20)
            return super().active()

    pauses = SlowlyRead(app.runtime.engine)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(pauses.seen)
        assert reading.wait(20)
        second = pool.submit(pauses.seen)
        with suppress(TimeoutError):
            second.result(0.3)
        may_read.set()

        assert [one.name for one in first.result(20)] == [STOPPED]
        assert second.result(20) == first.result(20)


def test_nothing_runs_before_the_pauses_could_be_read_for_the_first_time(
    app: MessagingApp,
    pausing: Pausing,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    one = pending(app, OTHER)
    nowhere = create_engine("postgresql+psycopg2://nobody@127.0.0.1:1/none")
    with monkeypatch.context() as patch:
        patch.setattr(app.runtime.pauses, "_engine", nowhere)
        error = receive(app, one, OTHER)
        assert isinstance(error, OperationalError)  # Celery sends the message again
        assert (ran, state(app, one), attempts(app, one)) == ([], "pending", 0)
        assert "Pauses cannot be read: OperationalError" in caplog.text

    receive(app, one, OTHER)
    assert ran == [OTHER]
    assert attempts(app, one) == 1
    app.runtime.pauses.forget()
    monkeypatch.setattr(app.runtime.pauses, "_engine", nowhere)
    assert app.runtime.pauses.seen() == []  # as they were read last


def test_what_is_running_when_a_pause_begins_finishes(app: MessagingApp, pausing: Pausing):
    running = pending(app, sku="SLOW")
    worker = threading.Thread(target=receive, args=(app, running, STOPPED))
    worker.start()
    assert while_running.wait(20)

    pausing.pause(Scope.ALL, "", "anna", "everything stops")
    assert state(app, running) == "pending"
    may_end.set()
    worker.join(20)

    assert state(app, running) == "done"


def test_the_relay_and_the_schedule_leave_a_paused_handler_alone(app: MessagingApp, pausing: Pausing):
    pausing.pause(Scope.HANDLER, STOPPED, "anna", "moving")
    due, due_too = pending(app), pending(app, OTHER)
    failed, failed_too = put(app, handler=STOPPED, age_s=9000.0), put(app, handler=OTHER, age_s=9000.0)

    housekeeping.relay(app.dispatcher)
    assert sent(app) == [due_too]
    assert state(app, due) == "waiting"

    housekeeping.rerun(app.dispatcher)
    assert sent(app) == [failed_too]
    assert state(app, failed) == "failed"


def test_a_rerun_of_a_paused_handler_waits(app: MessagingApp, pausing: Pausing):
    failed = put(app, handler=STOPPED)
    pausing.pause(Scope.HANDLER, STOPPED, "anna", "moving")

    list(app.dispatcher.rerun(DeliveryFilter(ids=(failed,)), "bert", 1))
    receive(app, failed, STOPPED)

    assert state(app, failed) == "waiting"
    assert ran == []


def test_a_pause_of_a_renamed_handler_holds_deliveries_under_both_names(clean_database: str):
    for app in app_on(clean_database):
        pausing, name = Pausing(app.dispatcher), "send_out_of_stock_notification"
        pausing.pause(Scope.HANDLER, "announce_to_the_team", "anna", "moving")

        ids = [pending(app, "announce_to_the_team"), pending(app, name)]
        housekeeping.relay(app.dispatcher)
        assert [state(app, one) for one in ids] == ["waiting", "waiting"]

        pausing.resume(Scope.HANDLER, name, "anna")
        housekeeping.relay(app.dispatcher)
        assert [state(app, one) for one in ids] == ["pending", "pending"]


def test_a_worker_of_an_older_release_cannot_run_what_waits(app: MessagingApp, pausing: Pausing):
    waiting = pending(app)
    pausing.pause(Scope.HANDLER, STOPPED, "anna", "moving")

    with Transaction(app.runtime.engine) as transaction:
        assert Attempt(app.runtime.engine, waiting, "an older worker").claim(transaction) is None


def test_a_wrong_name_a_second_pause_and_a_missing_pause_are_refused(pausing: Pausing):
    with pytest.raises(WrongPause, match=f"No handler is called 'typo'; there are {OTHER}, .*{STOPPED}"):
        pausing.pause(Scope.HANDLER, "typo", "anna", "x")
    with pytest.raises(WrongPause, match="is not paused"):
        pausing.resume(Scope.HANDLER, OTHER, "anna")
    pausing.pause(Scope.HANDLER, OTHER, "anna", "moving")
    with pytest.raises(WrongPause, match=f"Already paused: {OTHER}, by anna since .*: moving"):
        pausing.pause(Scope.HANDLER, OTHER, "bert", "y")


def test_a_pause_begins_although_another_one_ends_just_then(pausing: Pausing, app: MessagingApp):
    pausing.pause(Scope.HANDLER, OTHER, "anna", "moving")
    pauses = Pauses(create_engine(app.runtime.engine.url))

    @event.listens_for(app.runtime.engine, "commit", once=True)
    def resume(_connection: Any) -> None:
        pauses.remove(Scope.HANDLER, (OTHER,), "anna", None)

    said = pausing.pause(Scope.HANDLER, OTHER, "bert", "it fails")

    assert said.startswith(f"{OTHER} is paused.")
    assert [one.actor for one in pauses.active()] == ["bert"]
    pauses._engine.dispose()


def test_a_delivery_without_a_pause_costs_the_same_two_messages_to_the_database(app: MessagingApp):
    ids = [pending(app, OTHER) for _ in range(20)]
    app.runtime.pauses.forget()

    with recorded(app) as messages:
        began = time.monotonic()
        for delivery_id in ids:
            receive(app, delivery_id, OTHER)
        seconds = time.monotonic() - began

    of_pauses = [one for one in messages if any("FROM pauses" in statement for statement in one)]
    of_deliveries = [
        one
        for one in messages
        if one[0] in ("BEGIN", "SAVEPOINT undo") and len(one) > 1 and one not in of_pauses
    ]
    assert of_deliveries == [
        ["BEGIN", "CLAIM"],
        ["SAVEPOINT undo", "RELEASE SAVEPOINT undo", "DONE", "COMMIT"],
    ] * len(ids)
    assert len(of_pauses) <= 1 + seconds / SEEN_S


def test_a_groups_handler_is_paused_with_the_groups_error_as_the_reason(app: MessagingApp, pausing: Pausing):
    put(app, handler=STOPPED, error="PriceUnknown: no price for 17")
    put(app, handler=OTHER, error="KeyError: 'x'")
    [group] = [
        one.id
        for one in DeliveryQueries(app.runtime.engine).groups(DeliveryFilter(), 5)
        if one.handler == STOPPED
    ]

    said = pausing.pause_group(group, "anna")

    assert said.startswith(f"{STOPPED} is paused. 0 pending deliveries wait")
    assert f"`deliveries resume {STOPPED}`" in said
    [pause] = app.runtime.pauses.active()
    assert (pause.name, pause.reason) == (STOPPED, f"group {group}: PriceUnknown: no price for 17")
    with pytest.raises(WrongPause, match="Already paused"):
        pausing.pause_group(group, "bert", "me too")
    with pytest.raises(WrongPause, match="No failed delivery is in the group 0000000000"):
        pausing.pause_group("0000000000", "bert")


def test_a_handler_that_is_renamed_while_it_is_paused_stays_paused_and_is_resumed(
    app: MessagingApp, pausing: Pausing, clean_database: str
):
    def new_handler(_event: OutOfStock, _uow: Any) -> None:
        """Leave a trace."""
        ran.append("new")

    old = pending(app)
    pausing.pause(Scope.HANDLER, STOPPED, "anna", "moving")
    for release in app_on(clean_database, {OutOfStock: [new_handler]}, {STOPPED: "new_handler"}):
        new = pending(release, "new_handler")
        receive(release, new, "new_handler")
        housekeeping.relay(release.dispatcher)
        assert sent(release) == []
        assert (state(release, old), state(release, new), ran) == ("waiting", "waiting", [])
        again = Pausing(release.dispatcher)
        with pytest.raises(WrongPause, match="Already paused"):
            again.pause(Scope.HANDLER, "new_handler", "bert", "x")

        # Either name will do, also in the older release's tool.
        again.resume(Scope.HANDLER, "new_handler", "bert")
        housekeeping.relay(release.dispatcher)
        assert sorted(sent(release)) == sorted([old, new])
        release.runtime.pauses.forget()
        for delivery_id in (old, new):
            receive(release, delivery_id, "new_handler")
        assert ran == ["new", "new"]


def test_a_pause_of_the_next_release_is_ended_by_the_tool_of_the_one_before(
    app: MessagingApp, pausing: Pausing, clean_database: str
):
    def new_handler(_event: OutOfStock, _uow: Any) -> None:
        """Leave a trace."""

    for release in app_on(clean_database, {OutOfStock: [new_handler]}, {STOPPED: "new_handler"}):
        Pausing(release.dispatcher).pause(Scope.HANDLER, "new_handler", "anna", "moving")
    delivery_id = pending(app)
    receive(app, delivery_id, STOPPED)
    assert state(app, delivery_id) == "waiting"  # it has both names

    pausing.resume(Scope.HANDLER, STOPPED, "bert")

    assert app.runtime.pauses.active() == []


@pytest.mark.parametrize("shared_sessions", [False, True])
def test_times_are_shown_in_utc_whatever_the_time_zone_of_the_server(
    new_database: Callable[[], str], shared_sessions: bool
):
    url = new_database()
    owner = create_engine(url)
    with owner.begin() as connection:
        name = connection.execute(text("SELECT current_database()")).scalar_one()
        connection.execute(text(f"ALTER DATABASE {name} SET timezone = 'Asia/Tokyo'"))
    owner.dispose()

    for app in app_on(url, database_shared_sessions=shared_sessions):
        Pausing(app.dispatcher).pause(Scope.ALL, "", "ann", "a test")

        [[at]] = ask(app, "SELECT to_char(at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS') FROM pauses")
        assert f"since {at}Z" in shown(active(app.runtime)[0])


def test_check_names_what_has_failed_also_while_something_is_paused(app: MessagingApp, pausing: Pausing):
    put(app, handler=OTHER)
    pausing.pause(Scope.HANDLER, STOPPED, "ann", "a test")

    with pytest.raises(Notice) as seen:
        Checkup(lambda: app, app.runtime, "tasks").deliveries()

    assert f"paused: {STOPPED}, by ann" in seen.value.what
    assert f"failed: {OTHER} (1)" in seen.value.what
    assert "deliveries resume" in seen.value.remedy
    assert "deliveries rerun" in seen.value.remedy
