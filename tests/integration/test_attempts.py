"""Every attempt, and every worker's death, is counted once, in the run that it belongs to."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import psycopg2
import pytest
from celery.exceptions import Ignore, Reject, Retry

from allocation.domain.events import OutOfStock
from local.waiting import eventually
from messaging.delivery import Failure
from messaging.errors import RetryAfter
from messaging.operator.deliveries import DeliveryQueries
from messaging.operator.pausing import Pausing
from messaging.postgres.attempts import Attempt
from messaging.postgres.filters import DeliveryFilter
from messaging.postgres.pauses import Scope
from messaging.postgres.transaction import Transaction
from messaging.worker import housekeeping
from messaging.worker.app import MessagingApp
from messaging.worker.events import AttemptFailed
from tests.integration.one_attempt import app_with, kills_its_process
from tests.integration.outbox import ask, put, receive, state

Behaviour = Callable[..., None]  # (event, unit of work)

#: The behaviour of the handler under test; each test sets it.
behaviour: list[Behaviour] = []


@pytest.fixture
def app(clean_database: str) -> Iterator[MessagingApp]:
    """An app with a handler whose behaviour the test sets."""
    behaviour.clear()
    yield from app_with(clean_database, lambda event, uow: behaviour[-1](event, uow))


def owed(app: MessagingApp, handler: str = "handle_oddly") -> str:
    """Insert one pending delivery without attempts; return its id."""
    delivery_id = put(app, handler=handler, status="pending")
    ask(app, "UPDATE deliveries SET attempts = 0 RETURNING 1")
    return delivery_id


def standing(app: MessagingApp) -> tuple[Any, ...]:
    """Return state, run and attempts of the one delivery."""
    [row] = ask(app, "SELECT status, reruns, attempts FROM deliveries")
    return row


def attempts(app: MessagingApp) -> list[tuple[Any, ...]]:
    """Return run and number of failed attempts."""
    return ask(app, "SELECT run, number FROM attempts ORDER BY 1, 2")


def fail_with(text: str) -> None:
    """Raise an error, in an expression."""
    raise ValueError(text)


class NoText(Exception):
    """An error whose text cannot be shown."""

    def __str__(self) -> str:
        raise ValueError("there is no text")

    __repr__ = __str__


class TextExits(Exception):
    """An error whose text exits the process."""

    def __str__(self) -> str:
        raise SystemExit(3)


class NamelessType(type):
    """A class whose name raises an error."""

    @property
    def __name__(cls) -> str:  # type: ignore[override]
        raise RuntimeError("no name")


class Nameless(Exception, metaclass=NamelessType):
    """An error of such a class."""


def recurse(depth: int = 0) -> None:
    """Recurse for ever."""
    recurse(depth + 1)


def raise_recursion() -> BaseException:
    """Return the error of endless recursion."""
    try:
        recurse()
    except RecursionError as error:
        return error
    raise AssertionError("unreachable")


def chained(length: int) -> BaseException:
    """Return an error with a long chain of causes."""
    error: BaseException = ValueError("the first")
    for number in range(length):
        later = ValueError(f"cause {number}")
        later.__cause__ = error
        error = later
    return error


ODD_ERRORS: dict[str, Callable[[], BaseException]] = {
    "half of a surrogate pair": lambda: ValueError("\ud800"),
    "a NUL": lambda: ValueError("a\x00b"),
    "100 MB": lambda: ValueError("x" * 100_000_000),
    "no text": NoText,
    "a text that exits": TextExits,
    "a class without a name": Nameless,
    "bytes": lambda: ValueError(b"\xff\xfe"),
    "recursion": raise_recursion,
    "ten thousand causes": lambda: chained(10_000),
    "a group": lambda: ExceptionGroup("\ud800", [ValueError("\udfff"), NoText()]),
    "sys.exit": lambda: SystemExit("bye"),
    "Ctrl-C": KeyboardInterrupt,
    "the end of a generator": GeneratorExit,
    "cancelled": asyncio.CancelledError,
    "no memory": MemoryError,
    "Celery's retry": lambda: Retry("later"),
    "Celery's ignore": Ignore,
    "Celery's reject": lambda: Reject("no", requeue=True),
}


@pytest.mark.parametrize("name", ODD_ERRORS)
def test_any_error_of_a_handler_counts_as_an_attempt(app: MessagingApp, name: str):
    runs = []

    def fail(_event: OutOfStock, _uow: object) -> None:
        runs.append(1)
        raise ODD_ERRORS[name]()

    behaviour.append(fail)
    delivery_id = owed(app)

    for _ in range(5):
        receive(app, delivery_id, "handle_oddly")

    assert standing(app) == ("failed", 0, 3)
    assert attempts(app) == [(0, 1), (0, 2), (0, 3)]
    assert len(runs) == 3
    [(error_size, trace_size)] = ask(app, "SELECT length(last_error), length(last_traceback) FROM deliveries")
    assert 0 < error_size <= 2_000
    assert 0 < trace_size <= 20_000


def test_the_reported_error_of_a_handler_is_limited_in_size(app: MessagingApp):
    behaviour.append(lambda _event, _uow: fail_with("x" * 1_000_000))

    error = receive(app, owed(app), "handle_oddly")

    assert len(repr(error)) < 3_000
    assert error is not None
    assert error.__cause__ is None


def fail_for_good_elsewhere(app: MessagingApp, delivery_id: str) -> None:
    """Let another copy fail for the last time, and an operator re-run the delivery."""
    app.runtime.outbox.give_up(delivery_id, "another", ValueError("for good"))
    app.runtime.outbox.rerun(DeliveryFilter(ids=(delivery_id,)), "ann@desk", 1)


def test_nothing_can_change_a_delivery_between_its_failure_and_the_count(app: MessagingApp):
    """The error's text is read when the attempt is over and not yet counted."""
    delivery_id = owed(app)

    class Slow(Exception):
        def __str__(self) -> str:
            fail_for_good_elsewhere(app, delivery_id)
            return "slow"

    def fail(_event: OutOfStock, _uow: object) -> None:
        raise Slow

    behaviour.append(fail)

    receive(app, delivery_id, "handle_oddly")

    assert standing(app) == ("pending", 0, 1)
    assert attempts(app) == [(0, 1)]


def lose_session(uow: Any) -> None:
    """Terminate the handler's own session, like a restart of the server."""
    with suppress(psycopg2.Error):
        uow.transaction.read("SELECT pg_terminate_backend(pg_backend_pid())")


def test_a_failure_that_is_reported_late_counts_in_its_own_run(app: MessagingApp):
    delivery_id = owed(app)

    def fail(_event: OutOfStock, uow: Any) -> None:
        lose_session(uow)
        fail_for_good_elsewhere(app, delivery_id)
        raise ValueError("late")

    behaviour.append(fail)
    receive(app, delivery_id, "handle_oddly")
    behaviour.append(lambda _event, _uow: None)
    receive(app, delivery_id, "handle_oddly")

    assert standing(app) == ("done", 1, 1)
    assert (1, 1) not in attempts(app)


def test_a_failure_is_counted_although_its_delivery_was_put_aside_meanwhile(app: MessagingApp):
    """Found by the simulation: its operators pause what fails while an attempt hangs."""
    delivery_id = owed(app)
    pausing = Pausing(app.dispatcher)

    def fail(_event: OutOfStock, uow: Any) -> None:
        lose_session(uow)
        pausing.pause(Scope.HANDLER, "handle_oddly", "anna", "it fails")
        raise ValueError("late")

    behaviour.append(fail)
    receive(app, delivery_id, "handle_oddly")
    assert standing(app) == ("waiting", 0, 0)
    pausing.resume(Scope.HANDLER, "handle_oddly", "anna")
    app.runtime.pauses.forget()
    housekeeping.relay(app.dispatcher)
    behaviour.append(lambda _event, _uow: None)
    receive(app, delivery_id, "handle_oddly")

    assert standing(app) == ("done", 0, 2)
    assert attempts(app) == [(0, 1)]


@pytest.mark.parametrize("redelivered", [False, True])
def test_an_attempt_that_loses_its_session_as_it_asks_to_wait_counts_and_is_no_crash(
    app: MessagingApp, redelivered: bool
):
    """It was made again and again, uncounted; after a redelivery it was parked as what kills its workers."""
    delivery_id = owed(app)

    def wait(_event: OutOfStock, uow: Any) -> None:
        lose_session(uow)
        raise RetryAfter(0)

    for _ in range(app.runtime.settings.max_crashes):
        behaviour.append(wait)
        assert isinstance(receive(app, delivery_id, "handle_oddly", redelivered=redelivered), AttemptFailed)
    behaviour.append(lambda _event, _uow: None)
    receive(app, delivery_id, "handle_oddly", redelivered=redelivered)

    assert standing(app) == ("done", 0, 3)
    assert attempts(app) == [(0, 1), (0, 2)]


def test_a_failure_is_counted_although_another_copy_holds_the_row(app: MessagingApp):
    delivery_id = owed(app)
    begun, go_on = threading.Event(), threading.Event()

    def hold(_event: OutOfStock, _uow: object) -> None:
        begun.set()
        assert go_on.wait(60)
        raise ValueError("the other copy")

    other = threading.Thread(target=receive, args=(app, delivery_id, "handle_oddly"))

    def fail(_event: OutOfStock, uow: Any) -> None:
        lose_session(uow)
        behaviour.append(hold)
        other.start()
        assert begun.wait(60)
        raise ValueError("this copy")

    behaviour.append(fail)
    receive(app, delivery_id, "handle_oddly")
    go_on.set()
    other.join(60)
    runs = []
    behaviour.append(lambda _event, _uow: runs.append(1) or fail_with("again"))
    for _ in range(3):
        receive(app, delivery_id, "handle_oddly")

    assert len(runs) == 1  # the third attempt
    assert standing(app) == ("failed", 0, 3)
    assert attempts(app) == [(0, 1), (0, 2), (0, 3)]


def test_a_failure_that_is_recorded_twice_is_counted_once(app: MessagingApp):
    """If the connection is lost at the commit, its outcome is unknown, so the failure is recorded again."""
    behaviour.append(lambda _event, _uow: fail_with("once"))
    delivery_id = owed(app)
    receive(app, delivery_id, "handle_oddly")
    [(token,)] = ask(app, "SELECT token::text FROM attempts")
    failure = Failure.of("worker", ValueError("once"))
    delivery = DeliveryQueries(app.runtime.engine).get(delivery_id)
    Attempt(app.runtime.engine, delivery_id, "worker", delivery=delivery, token=token).note_failed(failure)

    receive(app, delivery_id, "handle_oddly")

    assert standing(app) == ("pending", 0, 2)
    assert attempts(app) == [(0, 1), (0, 2)]


@pytest.mark.slow
def test_a_handler_that_kills_its_worker_is_parked_although_the_dying_session_holds_the_row(
    app: MessagingApp, clean_database: str
):
    """The message is redelivered at once and finds the row locked; later the relay sends another."""
    delivery_id, kills, redelivered = owed(app), 0, False
    row_is_free = "SELECT 1 FROM deliveries FOR UPDATE SKIP LOCKED"

    for _ in range(20):
        redelivered = kills_its_process(clean_database, delivery_id, "die_slowly", redelivered=redelivered)
        kills += redelivered
        if not redelivered:  # the relay's turn, long after
            eventually(lambda: ask(app, row_is_free), 30, "the end of the session")
        if state(app, delivery_id) == "failed":
            break

    assert kills <= 4  # nothing shows that the first two runs started
    [(status, error)] = ask(app, "SELECT status, last_error FROM deliveries")
    assert status == "failed"
    assert error == "WorkerCrashed: Parked: 2 workers died while they handled this event"


def test_a_worker_killed_again_and_again_is_counted_from_its_second_run(
    app: MessagingApp, clean_database: str
):
    delivery_id = owed(app)

    kills = [
        kills_its_process(clean_database, delivery_id, "die", redelivered=redelivered)
        for redelivered in (False, True, True, True)
    ]

    assert kills == [True, True, True, False]
    assert state(app, delivery_id) == "failed"
    assert ask(app, "SELECT crashes FROM deliveries") == [(2,)]


def test_a_forged_redelivery_to_another_handlers_task_parks_nothing(app: MessagingApp):
    behaviour.append(lambda _event, _uow: None)
    delivery_id = owed(app)

    for _ in range(6):
        receive(app, delivery_id, "reallocate", redelivered=True)

    assert standing(app) == ("pending", 0, 0)
    receive(app, delivery_id, "handle_oddly")
    assert standing(app) == ("done", 0, 1)


def test_forged_redeliveries_count_no_worker_that_lives(app: MessagingApp):
    """They arrive while the handler runs, and may run it too: their failures are not counted as deaths."""
    delivery_id = owed(app)

    def fail(_event: OutOfStock, _uow: object) -> None:
        for _ in range(6):
            receive(app, delivery_id, "handle_oddly", redelivered=True)
        raise ValueError("an honest failure")

    behaviour.append(fail)
    for _ in range(3):
        receive(app, delivery_id, "handle_oddly", redelivered=True)

    assert standing(app) == ("failed", 0, 3)
    assert ask(app, "SELECT last_error, crashes FROM deliveries") == [("ValueError: an honest failure", 0)]


def test_a_failed_attempts_writes_are_rolled_back(app: MessagingApp):
    def fail(_event: OutOfStock, uow: Any) -> None:
        uow.transaction.read("INSERT INTO products VALUES ('read') RETURNING 1")
        uow.transaction.write("INSERT INTO products VALUES ('written')")
        raise ValueError("after both")

    behaviour.append(fail)

    receive(app, owed(app), "handle_oddly")

    assert ask(app, "SELECT sku FROM products") == []
    assert standing(app) == ("pending", 0, 1)


@pytest.mark.parametrize(
    "statement", ["SELECT 1/0", "SELECT no_such_function()", "INSERT INTO products VALUES (NULL)"]
)
def test_an_error_of_the_database_counts_as_an_attempt(app: MessagingApp, statement: str):
    behaviour.append(lambda _event, uow: uow.transaction.write(statement))

    receive(app, owed(app), "handle_oddly")

    assert standing(app) == ("pending", 0, 1)


def test_a_handler_that_ends_its_own_transaction_is_counted_too(app: MessagingApp):
    def fail(_event: OutOfStock, uow: Any) -> None:
        uow.rollback()
        raise ValueError("out of turn")

    behaviour.append(fail)
    delivery_id = owed(app)
    for _ in range(4):
        receive(app, delivery_id, "handle_oddly")

    assert standing(app) == ("failed", 0, 3)


def test_a_handler_that_commits_itself_and_then_fails_is_not_done(app: MessagingApp):
    def commit_and_fail(_event: OutOfStock, uow: Any) -> None:
        uow.transaction.write("INSERT INTO products VALUES ('half')")
        uow.commit()
        raise ValueError("half done")

    behaviour.append(commit_and_fail)
    delivery_id = owed(app)
    for _ in range(3):
        receive(app, delivery_id, "handle_oddly")

    assert standing(app) == ("failed", 0, 3)
    assert ask(app, "SELECT FROM products WHERE sku = 'half'") == []


@pytest.mark.parametrize("commits", [True, False])
def test_a_handler_that_enters_its_unit_of_work_again_is_counted_too(app: MessagingApp, commits: bool):
    """A second session would wait for the first one's lock."""

    def enter(_event: OutOfStock, uow: Any) -> None:
        with uow:
            uow.transaction.write("INSERT INTO products VALUES ('twice')")
            if commits:
                uow.commit()

    behaviour.append(enter)
    delivery_id = owed(app)
    for _ in range(4):
        receive(app, delivery_id, "handle_oddly")

    assert standing(app) == ("failed", 0, 3)
    [(error,)] = ask(app, "SELECT last_error FROM deliveries")
    assert "the bus enters and commits it" in error
    assert ask(app, "SELECT sku FROM products") == []


def test_a_successful_delivery_takes_two_round_trips(app: MessagingApp):
    """Each is one message with several statements; this records every message to the server."""
    behaviour.append(lambda _event, uow: uow.transaction.write("INSERT INTO products VALUES ('a')"))
    delivery_ids = [owed(app), owed(app)]
    for_real, messages = Transaction._send, []
    receive(app, delivery_ids[0], "handle_oddly")  # prepares the statements
    ask(app, "DELETE FROM products RETURNING 1")

    def send(transaction: Transaction, statement: bytes) -> None:
        messages.append(statement)
        for_real(transaction, statement)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Transaction, "_send", send)
        receive(app, delivery_ids[1], "handle_oddly")

    assert len(messages) == 2
    assert state(app, delivery_ids[1]) == "done"
