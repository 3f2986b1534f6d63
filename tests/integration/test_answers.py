"""A sender's answer matches what was committed: copies, repeats, expiry, crashes, standbys."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, replace
from enum import IntEnum
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from celery.utils.serialization import get_pickleable_exception
from kombu.serialization import loads, prepare_accept_content
from sqlalchemy import event, text

from allocation.domain.commands import Allocate, ChangeBatchQuantity, CreateBatch
from allocation.domain.errors import InvalidSku
from allocation.service_layer.handlers import allocate
from local.processes import programs
from local.servers.postgres_server import Postgres
from local.waiting import eventually
from messaging.delivery import new_id
from messaging.errors import (
    Expired,
    InvalidMessage,
    MessagingError,
    RetryAfter,
    Unavailable,
    WorkerCrashed,
)
from messaging.messages import Command, to_dict
from messaging.operator.replaying import replay
from messaging.postgres.inbox import Answer
from messaging.postgres.transaction import Transaction
from messaging.texts import class_name
from messaging.worker.app import MessagingApp
from messaging.worker.bulk import handle_many
from messaging.worker.commands import handle
from messaging.worker.received import Received
from testing.databases import FAST
from tests.e2e.certificates import make_pair
from tests.integration.outbox import app_on, ask

#: The lock timeout here: the time limit divided by the attempts plus one.
SHORT_WAITS = {"task_time_limit_s": 3, "command_attempts": 2, "smtp_timeout_s": 1}


@pytest.fixture
def app(clean_database: str) -> Iterator[MessagingApp]:
    """The backend's app over an empty database."""
    yield from app_on(clean_database, **SHORT_WAITS)


@pytest.fixture
def tell(app: MessagingApp) -> Callable[..., Answer]:
    """Handle a message as a worker does and return its sender's answer."""
    return lambda command, message: handle(app.runtime, message, lambda: command)[0]


def message(key: str | None = None, **facts: Any) -> Received:
    """A new message with a command."""
    task_id = new_id()
    usual = Received(task_id, "allocation.allocate", key, task_id, False, False, "allocation.commands")
    return replace(usual, **facts)


def again(first: Received, **facts: Any) -> Received:
    """The same message, redelivered."""
    return replace(first, redelivered=True, **facts)


def allocated(app: MessagingApp) -> list[tuple[Any, ...]]:
    return ask(app, "SELECT orderid, qty FROM allocations")


ORDER = Allocate("o1", "LAMP", 3)
STOCK = CreateBatch("b1", "LAMP", 10)


def test_a_repeat_with_the_same_key_has_the_first_result_and_no_second_effect(app: MessagingApp, tell):
    tell(STOCK, message())
    first = tell(ORDER, message("order-1"))
    tell(ChangeBatchQuantity("b1", 0), message())  # a fresh run would give another answer

    assert tell(ORDER, message("order-1")) == first == Answer("b1")
    assert allocated(app) == []


def test_a_key_of_another_command_never_gets_the_result_of_the_first(app: MessagingApp, tell):
    tell(STOCK, message())
    tell(ORDER, message("order-1"))

    other = tell(Allocate("o2", "LAMP", 3), message("order-1"))

    assert isinstance(other.error, InvalidMessage)
    assert str(other.error) == "idempotency_key was used before, for another command"
    assert allocated(app) == [("o1", 3)]


def test_a_plain_message_is_not_refused_when_a_repeat_under_its_id_was_carried_out(app: MessagingApp, tell):
    """A message's id is its default key, and error texts say to repeat it with that."""
    plain = message()
    tell(STOCK, message(plain.task_id))
    tell(ChangeBatchQuantity("b1", 4), message())  # a fresh run would be refused: the batch differs

    assert tell(STOCK, plain) == Answer(None)


def test_a_repeat_after_a_refusal_is_carried_out_once_the_stock_is_there(app: MessagingApp, tell):
    assert isinstance(tell(ORDER, message("order-1")).error, InvalidSku)
    tell(STOCK, message())

    assert tell(ORDER, message("order-1")) == Answer("b1")
    assert allocated(app) == [("o1", 3)]


def test_a_refused_command_that_is_redelivered_is_not_carried_out(app: MessagingApp, tell):
    refused = message("order-1")
    tell(ORDER, refused)
    tell(STOCK, message())

    answer = tell(ORDER, again(refused))

    assert isinstance(answer.error, InvalidSku)
    assert str(answer.error) == "Invalid sku LAMP"
    assert allocated(app) == []


def test_an_unreadable_command_stays_refused_when_it_is_redelivered_to_another_release(app: MessagingApp):
    """The next release may be able to read it."""

    def unreadable() -> Command:
        raise InvalidMessage("colour", "is not a field of this message")

    refused = message()
    handle(app.runtime, refused, unreadable)

    answer, _ = handle(app.runtime, again(refused), lambda: STOCK)

    assert str(answer.error) == "colour is not a field of this message"
    assert ask(app, "SELECT FROM batches") == []


def test_a_release_that_cannot_read_a_command_still_returns_its_stored_result(app: MessagingApp, tell):
    def unreadable() -> Command:
        raise InvalidMessage("qty", "must be at least 5")

    tell(STOCK, message())
    first = message()
    tell(ORDER, first)

    answer, _ = handle(app.runtime, replace(first, redelivered=True), unreadable)

    assert answer == Answer("b1")


def test_a_copy_gets_the_same_unexpected_error(app: MessagingApp, tell):
    def broken(_command: Command, _uow: Any) -> None:
        raise KeyError("\ud800", object())

    first = message()
    with handled_by(app, Allocate, broken):
        tell(ORDER, first)
    tell(STOCK, message())

    answer = tell(ORDER, again(first))

    assert type(answer.error).__name__ == "KeyError"
    assert allocated(app) == []


class Gone(Exception):
    """Cannot be built from its arguments again, so it cannot be pickled."""

    def __init__(self, order: str, shelf: int) -> None:
        super().__init__(f"{order} is not on shelf {shelf}")


class Misplaced(MessagingError):
    """A declared error that cannot be built from its arguments again."""

    def __init__(self, order: str, shelf: int) -> None:
        super().__init__(f"{order} is not on shelf {shelf}")


class NoSuchOrder(MessagingError):
    """A declared error that would have another text if it were built from its arguments."""

    def __init__(self, order: str) -> None:
        super().__init__(f"There is no order {order}")


class TooHeavy(MessagingError):
    """A declared error that is made of numbers, of which its text is made."""

    def __str__(self) -> str:
        [weights] = self.args
        return f"{', '.join(f'{weight:.1f}' for weight in weights)} kg are too heavy"


class Shelf(IntEnum):
    """A number with a name, which JSON does not keep."""

    TOP = 3


class Barred(MessagingError):
    """A declared error whose text needs the name of a number."""

    def __str__(self) -> str:
        [shelf] = self.args
        return f"the shelf {shelf.name} is barred"


DECLARED = [Misplaced("o1", 3), NoSuchOrder("o1"), RetryAfter(5), TooHeavy([12.5, 20.25])]


@pytest.mark.parametrize(
    "error", [ZeroDivisionError("division by zero"), Gone("o1", 3), KeyError("o1"), *DECLARED]
)
def test_a_copy_is_told_an_error_in_the_same_words(app: MessagingApp, tell, error: Exception):
    """Celery tells another one where it cannot pickle it. Seed 237 of `make simulate` has found that."""
    first = message()

    def fail(_command: Command, _uow: Any) -> None:
        raise error

    with handled_by(app, Allocate, fail):
        answers = [tell(ORDER, first), tell(ORDER, again(first))]

    kind = type(error)
    assert [told(answer) for answer in answers] == [(kind.__module__, kind.__name__, error.args)] * 2


def told(answer: Answer) -> tuple[str, str, Any]:
    """Return module, class and arguments of the error that Celery tells a sender."""
    with pytest.raises(Exception) as raised:  # noqa: PT011  of any class
        answer.given()
    error = get_pickleable_exception(raised.value)
    return type(error).__module__, type(error).__name__, error.args


class Unshowable:
    """A value like a row whose session has ended."""

    def __repr__(self) -> str:
        raise RuntimeError("no session")


@pytest.mark.parametrize(
    "argument",
    [Unshowable(), [Unshowable()], 10**5000, float("nan"), {1: (2,)}, ["x" * 20_000]],
    ids=["unshowable", "list", "long number", "no number", "dict", "long list"],
)
def test_an_error_is_recorded_whatever_its_arguments_are(app: MessagingApp, tell, argument: object):
    """Else a copy of its message could be carried out."""

    def fail(_command: Command, _uow: Any) -> None:
        raise ValueError("no", argument)

    first = message()
    with handled_by(app, Allocate, fail):
        answer = tell(ORDER, first)
    tell(STOCK, message())

    assert told(tell(ORDER, again(first))) == told(answer)
    assert (type(answer.error).__name__, told(answer)[2][0]) == ("ValueError", "no")
    assert allocated(app) == []


class NoText(Exception):
    """Has no text."""

    def __str__(self) -> str:
        raise ZeroDivisionError


#: Errors whose text is made of what the inbox does not keep.
CHANGED = [
    ValueError("o1", Shelf.TOP),
    Barred(Shelf.TOP),
    TooHeavy([12.5] * 5_000),
    NoSuchOrder("o" * 20_000),
]


@pytest.mark.parametrize(
    "error", [NoText(), ValueError(Unshowable()), KeyError("o1"), *DECLARED, *CHANGED], ids=class_name
)
def test_each_command_of_a_message_keeps_its_outcome_whatever_one_of_them_raises(
    app: MessagingApp, error: Exception
):
    def fail(_command: Command, _uow: Any) -> None:
        raise error

    orders = [["allocation.create_batch", to_dict(STOCK)], ["allocation.allocate", to_dict(ORDER)]]
    first = message()
    with handled_by(app, Allocate, fail):
        outcomes, _ = handle_many(app.runtime, first, orders)
        told_again, _ = handle_many(app.runtime, again(first), orders)

    [stock, order] = outcomes
    assert stock["result"] is None
    assert order["error"]["type"] == type(error).__name__
    assert told_again == outcomes
    assert ask(app, "SELECT reference FROM batches") == [("b1",)]


@dataclass(frozen=True)
class Book(Command):
    """A command that checks its own fields."""

    first: int
    last: int

    def __post_init__(self) -> None:
        if self.last < self.first:
            raise ValueError("the last day is before the first")


@pytest.mark.parametrize("group_max", [1, 10])
def test_the_other_commands_of_a_message_keep_their_outcomes_if_one_refuses_its_own_fields(
    clean_database: str, group_max: int
):
    for app in app_on(clean_database, commands={Book: lambda _command, _uow: "booked"}, group_max=group_max):
        first = message()
        books = [["allocation.book", {"first": 2, "last": last}] for last in (3, 1, 4)]

        outcomes, _ = handle_many(app.runtime, first, books)
        told_again, _ = handle_many(app.runtime, again(first), books)

        assert outcomes == told_again
        assert [outcome.get("result") for outcome in outcomes] == ["booked", None, "booked"]
        assert outcomes[1]["error"] == {
            "type": "InvalidMessage",
            "message": "message cannot be built: ValueError: the last day is before the first",
        }


def test_a_running_copy_cannot_commit_a_command_whose_sender_got_a_refusal(app: MessagingApp, tell):
    """The first copy waits for a lock, the second is refused; the sender has that refusal."""
    tell(STOCK, message())
    first, refusal = message(), InvalidSku("Invalid sku LAMP")
    with locked(app, "SELECT FROM products FOR UPDATE"), ThreadPoolExecutor(1) as thread:
        running = thread.submit(tell, ORDER, first)
        eventually(lambda: waiting(app), what="the first copy at the lock")
        app.runtime.inbox.refuse(first.job(ORDER), refusal)

    assert str(running.result(10).error) == str(refusal)
    assert allocated(app) == []


def test_a_success_waits_for_a_refusal_under_its_key_that_is_about_to_be_committed(app: MessagingApp, tell):
    """Else a copy of the refused message could be told the success, and then the refusal."""
    tell(STOCK, message())
    refused, other = message("order-1"), message("order-1")
    with Transaction(app.runtime.engine) as transaction, ThreadPoolExecutor(1) as thread:
        app.runtime.inbox.record_refusal(transaction, refused.job(ORDER), InvalidSku("Invalid sku LAMP"))
        running = thread.submit(tell, ORDER, other)
        eventually(lambda: waiting(app), what="the other message at the key")
        assert allocated(app) == []
        transaction.commit()

        assert running.result(10).result == "b1"
    assert isinstance(tell(ORDER, again(refused)).error, InvalidSku)


def test_a_refusal_waits_for_a_success_under_its_key_that_is_about_to_be_committed(app: MessagingApp):
    refused, other = message("order-1").job(ORDER), message("order-1").job(ORDER)
    with Transaction(app.runtime.engine) as transaction, ThreadPoolExecutor(1) as thread:
        other.finish(transaction, "b1")
        transaction.read("SELECT 1")
        running = thread.submit(app.runtime.inbox.refuse, refused, InvalidSku("Invalid sku LAMP"))
        eventually(lambda: waiting(app), what="the refusal at the key")
        transaction.commit()

        assert running.result(10).result == "b1"


def test_no_sender_gets_unavailable_for_a_command_that_another_copy_carries_out(app: MessagingApp, tell):
    """The second copy gives up waiting for the first one's lock; then the first tries to commit."""
    tell(STOCK, message())
    first = message()
    reached, proceed = threading.Event(), threading.Event()

    def slow(command: Any, uow: Any) -> Any:
        result = allocate(command, uow)
        reached.set()
        assert proceed.wait(20)
        return result

    with ThreadPoolExecutor(1) as thread:
        with handled_by(app, Allocate, slow):
            running = thread.submit(tell, ORDER, first)
            assert reached.wait(10)
        second = tell(ORDER, again(first))
        proceed.set()

    assert isinstance(second.error, Unavailable)
    assert "nothing was changed" in str(second.error)
    assert str(running.result(10).error) == str(second.error)
    assert allocated(app) == []


def test_a_late_redelivery_of_a_command_that_was_carried_out_is_not_answered_as_expired(
    app: MessagingApp, tell
):
    tell(STOCK, message())
    first = message()
    tell(ORDER, first)

    assert tell(ORDER, again(first, expired=True)) == Answer("b1")


def test_an_expired_command_stays_expired_for_its_message_and_not_for_its_key(app: MessagingApp, tell):
    tell(STOCK, message())
    late = message("order-1", expired=True)

    assert isinstance(tell(ORDER, late).error, Expired)
    assert isinstance(tell(ORDER, again(late, expired=False)).error, Expired)
    assert allocated(app) == []
    assert tell(ORDER, message("order-1")) == Answer("b1")


def test_a_repeat_is_compared_as_the_current_release_reads_it(app: MessagingApp, tell):
    """The previous release had no `eta`, and one more field."""
    row = "CreateBatch(ref='b1', sku='LAMP', qty=10, colour='red')"
    ask(app, "INSERT INTO inbox (task_id, command, result) VALUES ('old', :row, 'null') RETURNING 1", row=row)

    assert tell(STOCK, message("old")) == Answer(None)
    assert ask(app, "SELECT FROM batches") == []


def test_a_command_that_keeps_killing_its_workers_is_parked_for_every_copy(app: MessagingApp, tell):
    tell(STOCK, message())
    killer = message()
    for _ in range(app.runtime.settings.max_crashes):
        app.runtime.inbox.count_crash(killer.task_id)

    assert isinstance(tell(ORDER, again(killer)).error, WorkerCrashed)
    assert isinstance(tell(ORDER, killer).error, WorkerCrashed)
    assert allocated(app) == []
    [(reason, task_id, headers)] = ask(app, "SELECT reason, task_id, headers FROM dead_letters")
    assert (reason, task_id, headers["idempotency_key"]) == (
        "killed its worker",
        killer.task_id,
        killer.task_id,
    )
    replayed = message(headers["idempotency_key"], task_id=headers["id"])
    assert tell(ORDER, replayed) == Answer("b1")


def test_the_replay_of_a_parked_command_is_signed_once_where_only_signed_messages_are_accepted(
    clean_database: str, tmp_path: Path
):
    """Its letter was written by a worker, which had seen the signature."""
    pair = make_pair(tmp_path, "backend")
    signing = {
        "signing_key": pair.key,
        "signing_certificate": pair.certificate,
        "signing_store": str(pair.certificate),
    }
    for app in app_on(clean_database, **signing):
        killer = message()
        for _ in range(app.runtime.settings.max_crashes):
            app.runtime.inbox.count_crash(killer.task_id)
        handle(app.runtime, again(killer), lambda: ORDER)

        [(letter_id,)] = ask(app, "SELECT id::text FROM dead_letters")
        replay(app.dispatcher, app.runtime.dead_letters, letter_id, "ann")

        with app.connection_for_read() as connection, connection.SimpleQueue("allocation.commands") as queue:
            sent = queue.get(block=False)
            sent.ack()
        accepted = prepare_accept_content(app.conf.accept_content)
        body = loads(sent.body, sent.content_type, sent.content_encoding, accept=accepted)
        assert body[:2] == [[], to_dict(ORDER)]


def test_the_text_of_a_database_error_is_not_sent(app: MessagingApp, tell):
    """A worker that was started before its migration."""
    ask(app, "ALTER TABLE allocations RENAME TO hidden; SELECT 1")
    try:
        answer = tell(ORDER, message())
    finally:
        ask(app, "ALTER TABLE hidden RENAME TO allocations; SELECT 1")

    assert isinstance(answer.error, Unavailable)
    assert "UndefinedTable 42P01" in str(answer.error)
    assert "allocations" not in str(answer.error)


def test_a_command_of_many_whose_own_id_would_be_too_long_is_refused(app: MessagingApp):
    """Its id becomes the cause of its events, and no message may carry a longer one."""
    order = ["allocation.allocate", {"orderid": "o1", "sku": "NONE", "qty": 1}]

    outcomes, _ = handle_many(app.runtime, message(task_id="x" * 254), [order])
    keyed, _ = handle_many(app.runtime, message(key="k" * 254), [order])

    assert outcomes[0]["error"]["message"] == "id must be a text of 1 to 255 printable characters"
    assert keyed[0]["error"]["message"] == "idempotency_key must be a text of 1 to 255 printable characters"


def test_many_commands_finish_even_if_every_run_is_interrupted(app: MessagingApp):
    """Each run is interrupted after two refusals; an answered command costs no further attempt."""
    commands = [["allocation.allocate", {"orderid": f"o{n}", "sku": "NONE", "qty": 1}] for n in range(6)]
    first, attempts = message(), 0

    def cut_off(command: Any, uow: Any) -> Any:
        nonlocal attempts
        attempts += 1
        if attempts % 3 == 0:
            raise SystemExit
        return allocate(command, uow)

    outcomes = None
    with handled_by(app, Allocate, cut_off):
        for run in range(3):
            with suppress(SystemExit):
                outcomes, _ = handle_many(app.runtime, again(first) if run else first, commands)

    assert outcomes is not None
    assert [outcome["error"]["type"] for outcome in outcomes] == ["InvalidSku"] * 6
    assert attempts == 8


def test_a_redelivered_message_of_many_finds_its_answers_in_one_query(app: MessagingApp):
    """One by one, a thousand answers from a database 8 ms away would exceed the time limit every time."""
    commands = [["allocation.allocate", {"orderid": f"o{n}", "sku": "NONE", "qty": 1}] for n in range(50)]
    first, connections = message(), 0
    outcomes, _ = handle_many(app.runtime, first, commands)

    def count_one(*_: Any) -> None:
        nonlocal connections
        connections += 1

    event.listen(app.runtime.engine, "checkout", count_one)
    again_told, _ = handle_many(app.runtime, again(first), commands)

    assert again_told == outcomes
    assert connections == 1


@pytest.mark.parametrize(("first_limit", "limit"), [(1, 2), (2, 1)])
def test_many_commands_are_answered_as_before_when_they_come_again_under_another_limit(
    clean_database: str, first_limit: int, limit: int
):
    """Its worker was killed after it had told the sender, and the next one has other settings."""
    first, told = message(), []
    commands = [["allocation.create_batch", {"ref": ref, "sku": "LAMP", "qty": 1}] for ref in ("b1", "b2")]
    for copy, bulk_max in (first, first_limit), (again(first), limit):
        for app in app_on(clean_database, bulk_max=bulk_max):
            try:
                told.append(handle_many(app.runtime, copy, commands)[0])
            except InvalidMessage as error:
                told.append(str(error))
            stored = ask(app, "SELECT reference FROM batches")

    assert told[0] == told[1]
    assert len(stored) == (2 if first_limit == 2 else 0)


def two_batches(*keys: str) -> list[list[Any]]:
    """The commands of a list, with these keys."""
    return [
        ["allocation.create_batch", {"ref": ref, "sku": "LAMP", "qty": 1}, key]
        for ref, key in zip(("b1", "b2"), keys, strict=True)
    ]


def test_a_list_that_was_refused_stays_refused_when_one_of_its_commands_has_succeeded_alone(
    clean_database: str,
):
    """Its sender was told to send smaller messages, and has done so."""
    first, commands = message(), two_batches("k1", "k2")
    for app in app_on(clean_database, bulk_max=1):
        with pytest.raises(InvalidMessage):
            handle_many(app.runtime, first, commands)
        handle_many(app.runtime, message(), commands[:1])
    for app in app_on(clean_database):
        with pytest.raises(InvalidMessage, match="must be at most 1 in one message"):
            handle_many(app.runtime, again(first), commands)

        assert ask(app, "SELECT reference FROM batches") == [("b1",)]


def test_a_command_of_a_list_may_have_the_lists_id_as_its_key(app: MessagingApp):
    first = message()
    commands = two_batches(first.task_id, "k2")

    outcomes, _ = handle_many(app.runtime, first, commands)

    assert handle_many(app.runtime, again(first), commands)[0] == outcomes
    assert [outcome["result"] for outcome in outcomes] == [None, None]


def test_a_list_that_is_too_long_is_refused_whatever_command_had_its_id_before(clean_database: str):
    for app in app_on(clean_database, bulk_max=1):
        first = message()
        handle(app.runtime, first, lambda: STOCK)

        for copy in first, again(first):
            with pytest.raises(InvalidMessage, match="id was used before, for another command"):
                handle_many(app.runtime, copy, two_batches("k1", "k2"))


@pytest.mark.timeout(30)
def test_unavailable_is_answered_within_the_time_limit_whatever_the_number_of_attempts(free_port: int):
    """Otherwise the task is killed each time and its sender never gets an answer."""
    nowhere = f"postgresql+psycopg2://allocation@127.0.0.1:{free_port}/allocation"
    for app in app_on(nowhere, **SHORT_WAITS | {"command_attempts": 100}):
        began = time.monotonic()
        answer, _ = handle(app.runtime, message(), lambda: ORDER)

        assert isinstance(answer.error, Unavailable)
        assert time.monotonic() - began < SHORT_WAITS["task_time_limit_s"]


@pytest.mark.parametrize("how", ["ended", "read-only"])
def test_a_command_is_carried_out_although_all_idle_sessions_are_broken(clean_database: str, how: str):
    """As after a failover: a worker with many threads has more of them than a command has attempts."""
    for app in app_on(clean_database):
        handle(app.runtime, message(), lambda: STOCK)
        if how == "ended":
            pids = in_idle_sessions(app, "SELECT pg_backend_pid()")
            with closing(psycopg2.connect(clean_database.replace("+psycopg2", ""))) as other:
                ended = "SELECT pg_terminate_backend(pid, 10000) FROM unnest(%s) AS pid"
                other.cursor().execute(ended, (pids,))
        else:
            in_idle_sessions(app, "SELECT set_config('default_transaction_read_only', 'on', false)")

        assert handle(app.runtime, message(), lambda: ORDER)[0] == Answer("b1")


def in_idle_sessions(app: MessagingApp, query: str) -> list[Any]:
    """Query in each of sixteen sessions of the pool; return the results."""
    with ExitStack() as stack:
        sessions = [stack.enter_context(app.runtime.engine.begin()) for _ in range(16)]
        return [session.execute(text(query)).scalar_one() for session in sessions]


@contextmanager
def handled_by(app: MessagingApp, kind: type[Command], handler: Callable[..., Any]) -> Iterator[None]:
    """Replace the handler of one command inside the block."""
    commands = app.runtime.project.bus.commands
    usual, commands[kind] = commands[kind], handler
    try:
        yield
    finally:
        commands[kind] = usual


def locked(app: MessagingApp, query: str) -> Any:
    """Hold a lock in another transaction inside the block."""
    connection = psycopg2.connect(
        app.runtime.settings.database_url.replace("postgresql+psycopg2", "postgresql")
    )
    connection.cursor().execute(query)
    return connection


def waiting(app: MessagingApp) -> bool:
    [(count,)] = ask(app, "SELECT count(*) FROM pg_locks WHERE NOT granted")
    return bool(count)


class Standby:
    """A PostgreSQL that can be set to wait for a missing standby."""

    def __init__(self, server: Postgres) -> None:
        self.server = server

    def require(self, name: str) -> None:
        """Make every commit wait for the standby of that name; an empty name turns this off."""
        with (self.server.folder / "data" / "postgresql.conf").open("a") as file:
            file.write(f"synchronous_standby_names = '{name}'\n")
        assert self.server.pid is not None
        os.kill(self.server.pid, signal.SIGHUP)


@pytest.fixture
def standby(server_folder: Path) -> Iterator[Standby]:
    """The test's own server."""
    with Postgres(server_folder / f"synchronous-{new_id()}", settings=FAST) as server:
        programs.migrate(server.url)
        yield Standby(server)


@pytest.fixture
def synchronous_app(standby: Standby) -> Iterator[MessagingApp]:
    """The backend's app on that server."""
    yield from app_on(standby.server.url)


@pytest.mark.parametrize("interruption", ["pg_terminate_backend", "pg_cancel_backend"])
def test_no_answer_is_sent_that_a_failover_could_undo(
    standby: Standby, synchronous_app: MessagingApp, interruption: str
):
    """The session is terminated, or its wait cancelled, while its commit waits for the standby."""
    app, orders = synchronous_app, []
    handle(app.runtime, message(), lambda: CreateBatch("b1", "LAMP", 10_000))
    synchronous = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
    standby.require("nobody")
    with ThreadPoolExecutor(1) as thread:

        def commit_that_waits() -> list[tuple[Any, ...]]:
            if not orders or orders[-1].done():  # the server has not read its setting yet
                order = Allocate(f"o{len(orders)}", "LAMP", 1)
                orders.append(thread.submit(handle, app.runtime, message(), lambda: order))
            return look(app, synchronous)

        try:
            [(pid,)] = eventually(commit_that_waits, what="a commit that waits")
            look(app, f"SELECT {interruption}({pid})")
            eventually(
                lambda: (
                    look(app, f"{synchronous} AND query LIKE '%emit_message%COMMIT%'") or orders[-1].done()
                ),
                what="the answer from the inbox, which waits too",
            )
            assert not orders[-1].done()
        finally:
            standby.require("")
        assert orders[-1].result(20)[0] == Answer("b1")


def look(app: MessagingApp, query: str) -> list[tuple[Any, ...]]:
    """Query without a commit, which would wait."""
    with app.runtime.engine.connect() as connection:
        return [tuple(row) for row in connection.execute(text(query))]
