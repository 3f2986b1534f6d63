"""Units of work that share a transaction: what is undone, what is committed, and in which order they lock."""

from __future__ import annotations

import dataclasses
import re
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Self

import psycopg2.errors
import pytest
from sqlalchemy import Connection, create_engine, text

from allocation.adapters.repository import LOCK_FREE_PRODUCTS, PostgresProductRepository, read_ahead
from allocation.adapters.unit_of_work import PostgresAllocationUnitOfWork
from allocation.domain.commands import Allocate, ChangeBatchQuantity, CreateBatch
from allocation.domain.errors import InvalidSku
from local.waiting import eventually
from messaging.delivery import new_id
from messaging.messages import Command
from messaging.postgres.inbox import CommandJob
from messaging.postgres.shared import PATIENCE_MS, SharedTransaction
from messaging.postgres.transaction import Transaction
from messaging.postgres.unit_of_work import PostgresUnitOfWork
from messaging.telemetry.work import NOBODY, Kind, Work
from messaging.worker import sharing
from messaging.worker.app import MessagingApp
from messaging.worker.bulk import handle_many
from messaging.worker.command_group import CommandUnit, once_each
from messaging.worker.received import Received
from messaging.worker.sharing import handle_in, handle_together, in_lock_order
from tests.integration.outbox import app_on, ask, failing_as_it_begins
from tests.integration.statements import recorded

COMMANDS = [
    ["allocation.create_batch", {"ref": "b1", "sku": "LAMP", "qty": 10}],
    ["allocation.allocate", {"orderid": "o1", "sku": "LAMP", "qty": 1}],
    ["allocation.allocate", {"orderid": "o1", "sku": "NONE", "qty": 1}],
    ["allocation.allocate", {"orderid": "o2", "sku": "LAMP", "qty": "1"}],
    ["allocation.allocate", {"orderid": "o3", "sku": "LAMP", "qty": 1}],
]


@pytest.fixture
def app(clean_database: str) -> Iterator[MessagingApp]:
    """The app, whose commands share transactions."""
    for app in app_on(clean_database, group_max=4):
        with app.runtime.engine.connect():  # a group has a second, and a busy machine takes longer to connect
            pass
        yield app


@pytest.fixture
def group(app: MessagingApp) -> Iterator[SharedTransaction]:
    """A transaction of several units of work."""
    with SharedTransaction(app.runtime.engine) as group:
        yield group


def message(**facts: Any) -> Received:
    """Return a message with many commands."""
    given = {"redelivered": False, "expired": False, "queue": None, "key": None, "correlation_id": "c"}
    return Received(task_id=new_id(), task="allocation.many", **given | facts)


def unit(
    app: MessagingApp, command: Command, task_id: str | None = None, key: str | None = None
) -> CommandUnit:
    """Return a command of a group."""
    job = CommandJob(task_id or new_id(), command, "c", key)
    work = Work(Kind.COMMAND, "allocation.allocate", job.id, "allocation.commands", "c")
    return CommandUnit(app.runtime, job, work, NOBODY)


def told(outcomes: list[dict[str, Any]]) -> list[Any]:
    """Return each result, or the class of the error."""
    return [one["error"]["type"] if "error" in one else one["result"] for one in outcomes]


def test_the_commands_of_a_message_with_many_share_transactions(app: MessagingApp):
    outcomes, _ = handle_many(app.runtime, message(), COMMANDS)

    assert told(outcomes) == [None, "b1", "InvalidSku", "InvalidMessage", "b1"]
    # The invalid one is refused alone, and so is the last, which is in a group by itself.
    assert ask(app, "SELECT count(*) FROM inbox GROUP BY at ORDER BY at") == [(3,), (1,), (1,)]


def test_the_commands_of_a_redelivered_message_have_transactions_of_their_own(app: MessagingApp):
    """One of them may have killed the worker."""
    outcomes, _ = handle_many(app.runtime, message(redelivered=True), COMMANDS)

    assert told(outcomes) == [None, "b1", "InvalidSku", "InvalidMessage", "b1"]
    assert ask(app, "SELECT count(DISTINCT at) FROM inbox") == [(5,)]


def test_a_repeat_is_left_to_run_alone(app: MessagingApp):
    lamp = CreateBatch("b1", "LAMP", 10)
    first, copy = unit(app, lamp, "id", "key"), unit(app, lamp, "id")
    repeat, other = unit(app, lamp, key="key"), unit(app, lamp)

    assert handle_together(app.runtime, once_each([first, copy, repeat])).keys() == {"id"}
    assert handle_together(app.runtime, once_each([repeat, other])) == {}


def test_a_group_locks_by_aggregate_and_keeps_the_order_of_each(app: MessagingApp):
    """A command that does not say what it locks keeps its place."""
    commands = [
        Allocate("o1", "TABLE", 1),
        Allocate("o2", "LAMP", 1),
        CreateBatch("b1", "TABLE", 1),
        ChangeBatchQuantity("b1", 1),
        Allocate("o3", "TABLE", 1),
        Allocate("o4", "CHAIR", 1),
    ]

    ordered = [one.message for one in in_lock_order(unit(app, command) for command in commands)]

    assert ordered == [commands[index] for index in (1, 0, 2, 3, 5, 4)]


def test_a_group_whose_session_ends_has_done_nothing(app: MessagingApp, group: SharedTransaction):
    other = create_engine(app.runtime.settings.database_url)
    group.open()
    group.read("INSERT INTO products VALUES ('LAMP') RETURNING sku")
    group.commit()
    with other.begin() as connection:
        connection.execute(
            text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE state = 'idle in transaction'")
        )

    with pytest.raises(psycopg2.OperationalError):
        group.commit_all()
    group.__exit__()
    other.dispose()
    assert ask(app, "SELECT sku FROM products") == []


def test_a_commit_that_postgresql_turns_into_a_rollback_is_an_error(
    app: MessagingApp, group: SharedTransaction
):
    """PostgreSQL answers COMMIT with ROLLBACK, and no error, once a statement has failed."""
    group.open()
    group.read("INSERT INTO products VALUES ('LAMP') RETURNING sku")
    group.commit()
    with pytest.raises(psycopg2.errors.DivisionByZero):
        group.read("SELECT 1 / 0")

    with pytest.raises(psycopg2.errors.InFailedSqlTransaction):
        group.commit_all()
    group.__exit__()
    assert ask(app, "SELECT sku FROM products") == []


def test_a_unit_of_work_that_fails_on_an_earlier_ones_write_undoes_the_whole_group(
    app: MessagingApp, group: SharedTransaction
):
    """Its own savepoint was not yet set, so only the group's end can undo the write."""
    group.open()
    group.read("INSERT INTO products VALUES ('LAMP') RETURNING sku")
    group.write("INSERT INTO products VALUES ('LAMP')")
    group.commit()
    group.open()
    with pytest.raises(psycopg2.errors.UniqueViolation):
        group.read("SELECT 1")
    group.close()

    with pytest.raises(psycopg2.errors.InvalidSavepointSpecification):
        group.commit_all()
    group.__exit__()
    assert ask(app, "SELECT sku FROM products") == []


def test_a_unit_of_work_that_undoes_a_part_of_its_changes_undoes_no_other_ones(
    app: MessagingApp, group: SharedTransaction
):
    group.open()
    group.write("INSERT INTO products VALUES ('CHAIR')")
    group.commit()
    group.open()
    group.savepoint()
    group.write("INSERT INTO products VALUES ('LAMP')")
    group.undo()
    group.write("INSERT INTO products VALUES ('TABLE')")
    group.commit()

    group.commit_all()

    assert ask(app, "SELECT sku FROM products ORDER BY 1") == [("CHAIR",), ("TABLE",)]


def stock(app: MessagingApp, *skus: str, qty: int = 10) -> None:
    """Create a batch of each product, with its name in small letters."""
    for sku in skus:
        handle_many(
            app.runtime,
            message(),
            [["allocation.create_batch", {"ref": sku.lower(), "sku": sku, "qty": qty}]],
        )


def results(app: MessagingApp, commands: Sequence[Command]) -> list[Any]:
    """Carry out commands together; return each result, or the class of its error."""
    units = [unit(app, command) for command in commands]
    done = handle_together(app.runtime, units)
    answers = [done[one.id].outcome[0] for one in units]
    return [type(answer.error) if answer.error else answer.result for answer in answers]


@pytest.fixture
def other(app: MessagingApp) -> Iterator[Connection]:
    """A transaction of somebody else."""
    engine = create_engine(app.runtime.settings.database_url)
    with engine.connect() as connection:
        yield connection
    engine.dispose()


def test_allocations_of_different_products_go_to_postgresql_in_two_messages(app: MessagingApp):
    stock(app, "CHAIR", "LAMP", "TABLE")
    commands = [Allocate("o1", sku, 1) for sku in ("TABLE", "CHAIR", "LAMP")]

    with recorded(app) as messages:
        assert results(app, commands) == ["table", "chair", "lamp"]

    assert [one[0] for one in messages] == ["BEGIN", "SET LOCAL lock_timeout = 20"]
    assert messages[-1][-1] == "COMMIT"
    assert not [one for sent in messages for one in sent if "SAVEPOINT" in one]


def test_allocations_of_the_same_products_take_one_message_more_for_each_time_that_they_come_again(
    app: MessagingApp,
):
    stock(app, "CHAIR", "LAMP", "TABLE")
    orders = [Allocate(f"o{order}", sku, 1) for order in (1, 2, 3) for sku in ("CHAIR", "LAMP", "TABLE")]

    with recorded(app) as messages:
        assert results(app, orders) == ["chair", "lamp", "table"] * 3

    assert len(messages) == 4
    assert ask(app, "SELECT DISTINCT allocated_quantity FROM batches") == [(3,)]


def test_a_command_sees_what_an_earlier_one_of_its_group_did_to_the_same_product(app: MessagingApp):
    stock(app, "LAMP", "TABLE", qty=3)
    commands: list[Command] = [
        Allocate(f"o{number}", sku, 2) for number in (1, 2) for sku in ("LAMP", "TABLE")
    ]

    assert results(app, [*commands, Allocate("o3", "LAMP", 1)]) == ["lamp", "table", None, None, "lamp"]
    assert ask(app, "SELECT allocated_quantity FROM batches ORDER BY 1") == [(2,), (3,)]


def test_a_batch_that_a_group_creates_is_there_for_its_next_command(app: MessagingApp):
    stock(app, "LAMP")
    commands = [Allocate("o1", "LAMP", 1), CreateBatch("new", "TABLE", 1), Allocate("o1", "TABLE", 1)]

    assert results(app, commands) == ["lamp", None, "new"]


def test_a_quantity_that_a_group_corrects_counts_for_its_next_command(app: MessagingApp):
    """The correction does not say which product it locks."""
    stock(app, "LAMP", "TABLE")
    commands = [Allocate("o1", "TABLE", 9), ChangeBatchQuantity("lamp", 1), Allocate("o2", "LAMP", 2)]

    assert results(app, commands) == ["table", None, None]
    assert ask(app, "SELECT allocated_quantity FROM batches WHERE sku = 'LAMP'") == [(0,)]


def test_a_refused_command_of_a_group_changes_nothing_and_the_others_are_committed(app: MessagingApp):
    stock(app, "CHAIR", "LAMP")
    commands = [Allocate("o1", sku, 1) for sku in ("CHAIR", "NONE", "LAMP", "NEITHER")]

    assert results(app, commands) == ["chair", InvalidSku, "lamp", InvalidSku]
    assert ask(app, "SELECT orderid, sku FROM allocations ORDER BY 2") == [("o1", "CHAIR"), ("o1", "LAMP")]
    assert ask(app, "SELECT count(*) FROM inbox WHERE error IS NOT NULL") == [(2,)]


def test_a_handler_that_fails_after_its_read_ahead_undoes_its_own_changes_alone(
    app: MessagingApp, monkeypatch: pytest.MonkeyPatch
):
    stock(app, "CHAIR", "LAMP", "TABLE")
    allocate = app.runtime.project.bus.commands[Allocate]

    def fails_for_lamps(command: Allocate, uow: Any) -> Any:
        result = allocate(command, uow)
        if command.sku == "LAMP":
            raise ZeroDivisionError
        return result

    monkeypatch.setitem(app.runtime.project.bus.commands, Allocate, fails_for_lamps)

    outcomes = results(app, [Allocate("o1", sku, 1) for sku in ("CHAIR", "LAMP", "TABLE")])

    assert outcomes == ["chair", ZeroDivisionError, "table"]
    assert ask(app, "SELECT sku FROM allocations ORDER BY 1") == [("CHAIR",), ("TABLE",)]
    assert ask(app, "SELECT allocated_quantity FROM batches WHERE sku = 'LAMP'") == [(0,)]


def test_what_was_read_ahead_and_not_used_serves_no_later_command(
    app: MessagingApp, monkeypatch: pytest.MonkeyPatch
):
    """It may have changed since."""
    stock(app, "CHAIR", "LAMP")
    allocate, calls = app.runtime.project.bus.commands[Allocate], list[str]()

    def fails_at_first(command: Allocate, uow: Any) -> Any:
        calls.append(command.sku)
        if calls == ["CHAIR", "LAMP"]:
            raise ZeroDivisionError
        return allocate(command, uow)

    monkeypatch.setitem(app.runtime.project.bus.commands, Allocate, fails_at_first)
    lines = [("o1", "LAMP", 10), ("o1", "CHAIR", 1), ("o2", "LAMP", 1), ("o1", "LAMP", 10)]

    outcomes = results(app, [Allocate(*line) for line in lines])

    assert outcomes == [ZeroDivisionError, "chair", "lamp", None]


def test_a_read_with_a_list_finds_nothing_that_was_read_ahead(app: MessagingApp, group: SharedTransaction):
    stock(app, "LAMP")
    group.read_ahead(read_ahead, [Allocate("o1", "LAMP", 1)])
    group.open()

    assert group.read_before(LOCK_FREE_PRODUCTS, (["LAMP"],)) is None


def test_a_repository_that_is_built_with_its_unit_of_work_takes_part(
    app: MessagingApp, monkeypatch: pytest.MonkeyPatch
):
    """As in docs/how-to/your-own-project.md."""

    class UnitOfWork(PostgresAllocationUnitOfWork):
        def __init__(self, settings: Any, engine: Any, job: Any, outbox: Any) -> None:
            super().__init__(settings, engine, job, outbox)
            self.products = PostgresProductRepository(self.transaction)

        def __enter__(self) -> Self:
            return PostgresUnitOfWork.__enter__(self)

    stock(app, "CHAIR", "LAMP")
    monkeypatch.setattr(
        app.runtime, "project", dataclasses.replace(app.runtime.project, unit_of_work=UnitOfWork)
    )

    assert results(app, [Allocate("o1", sku, 1) for sku in ("CHAIR", "LAMP")]) == ["chair", "lamp"]


def test_a_unit_of_work_that_fails_as_it_begins_fails_no_other_one(
    app: MessagingApp, monkeypatch: pytest.MonkeyPatch
):
    """The transaction had begun it."""
    stock(app, "CHAIR", "LAMP")
    project = replace(app.runtime.project, unit_of_work=failing_as_it_begins())
    monkeypatch.setattr(app.runtime, "project", project)

    outcomes = results(app, [Allocate("o1", sku, 1) for sku in ("CHAIR", "LAMP")])

    assert outcomes == [ConnectionRefusedError, "lamp"]


def test_a_handler_that_rolls_back_by_itself_has_changed_nothing(
    app: MessagingApp, monkeypatch: pytest.MonkeyPatch
):
    """Neither in a group nor, as the bus then cannot commit, alone."""
    allocate = app.runtime.project.bus.commands[Allocate]

    def rolls_back_chairs(command: Allocate, uow: Any) -> Any:
        result = allocate(command, uow)
        if command.sku == "CHAIR":
            uow.rollback()
        return result

    stock(app, "CHAIR", "LAMP")
    monkeypatch.setitem(app.runtime.project.bus.commands, Allocate, rolls_back_chairs)
    orders = [["allocation.allocate", {"orderid": "o1", "sku": sku, "qty": 1}] for sku in ("CHAIR", "LAMP")]

    outcomes, _ = handle_many(app.runtime, message(), orders)

    assert ["error" in outcome for outcome in outcomes] == [True, False]
    assert ask(app, "SELECT sku FROM allocations") == [("LAMP",)]


def test_a_locked_product_holds_up_no_other_command_of_the_group(app: MessagingApp, other: Connection):
    stock(app, "CHAIR", "LAMP", "TABLE")
    other.execute(text("SELECT FROM products WHERE sku = 'CHAIR' FOR NO KEY UPDATE"))
    units = [unit(app, Allocate("o1", sku, 1)) for sku in ("CHAIR", "LAMP", "TABLE")]
    with ThreadPoolExecutor(1) as thread:
        group = thread.submit(handle_together, app.runtime, units)
        try:
            done = group.result(4)  # alone it would wait for 6 s
        finally:
            other.rollback()

    assert done.keys() == {unit.id for unit in units[1:]}
    assert ask(app, "SELECT sku FROM allocations ORDER BY 1") == [("LAMP",), ("TABLE",)]


def test_a_group_that_holds_locks_leaves_a_product_that_others_hold_for_the_next_transaction(
    app: MessagingApp, other: Connection
):
    """It would make everybody wait who wants what it has locked. Nothing overtakes what it may depend on."""
    stock(app, "CHAIR", "LAMP", "TABLE")
    other.execute(text("SELECT FROM products WHERE sku = 'CHAIR' FOR NO KEY UPDATE"))
    commands = [
        *(Allocate("o1", sku, 1) for sku in ("CHAIR", "LAMP", "TABLE")),
        ChangeBatchQuantity("chair", 5),
        Allocate("o2", "CHAIR", 1),
    ]
    units = [unit(app, command) for command in commands]

    with recorded(app) as messages, SharedTransaction(app.runtime.engine) as transaction:
        rest, done = handle_in(transaction, app.runtime, units, time.monotonic() + 60)

    assert rest == [units[0], *units[3:]]
    assert done.keys() == {units[1].id, units[2].id}
    assert len(messages) == 2


def test_a_command_for_a_locked_product_holds_up_no_other_that_comes_first(
    app: MessagingApp, other: Connection
):
    """Nothing is read ahead for them; in the order of the locks it would come first."""
    stock(app, "CHAIR")
    other.execute(text("SELECT FROM products WHERE sku = 'CHAIR' FOR NO KEY UPDATE"))
    units = [unit(app, CreateBatch(sku, sku, 1)) for sku in ("LAMP", "CHAIR")]

    with ThreadPoolExecutor(1) as thread:
        group = thread.submit(handle_together, app.runtime, units)
        try:
            done = group.result(4)
        finally:
            other.rollback()

    assert done == {}  # so each runs alone, in turn


def test_commands_for_one_product_wait_together_for_its_lock(app: MessagingApp, other: Connection):
    """Nobody else waits for them, and the lock may be another group's."""
    stock(app, "LAMP")
    other.execute(text("SELECT FROM products WHERE sku = 'LAMP' FOR NO KEY UPDATE"))
    units = [unit(app, Allocate(f"o{number}", "LAMP", 1)) for number in range(3)]
    waits = (
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE wait_event_type = 'Lock' AND state_change < now() - interval '0.4 s'"
    )

    with ThreadPoolExecutor(1) as thread:
        group = thread.submit(handle_together, app.runtime, units)
        eventually(lambda: ask(app, waits) == [(1,)], 20, "a group that has waited for long")
        other.rollback()

        assert len(group.result(20)) == 3


def test_what_is_done_waits_for_all_locks_of_others_together_as_long_as_for_one(
    app: MessagingApp, other: Connection, monkeypatch: pytest.MonkeyPatch
):
    stock(app, "CHAIR", "LAMP", "TABLE")
    other.execute(text("SELECT FROM products WHERE sku = 'LAMP' FOR NO KEY UPDATE"))
    units = [unit(app, Allocate("o1", sku, 1)) for sku in ("CHAIR", "LAMP", "TABLE")]
    monkeypatch.setattr(sharing, "PATIENCE_MS", 20_000)  # a busy machine takes long to see who waits
    monkeypatch.setattr(sharing, "LONGEST_GROUP_S", 60)
    waits = (
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE wait_event_type = 'Lock' AND state_change < now() - interval '0.3 s'"
    )

    with other.engine.connect() as another, ThreadPoolExecutor(1) as thread, recorded(app) as messages:
        another.execute(text("SELECT FROM products WHERE sku = 'CHAIR' FOR NO KEY UPDATE"))
        group = thread.submit(handle_together, app.runtime, units)
        for holder in (another, other):
            eventually(lambda: ask(app, waits) == [(1,)], 20, "a group that waits")
            holder.rollback()
        assert len(group.result(20)) == 3

    found = re.findall("LOCAL lock_timeout = ([0-9]+)", str(messages))
    of_others, first, second = map(int, found)
    assert (of_others, second < first - 300) == (20, True)


def test_what_is_read_ahead_is_as_fresh_as_its_lock(app: MessagingApp, other: Connection):
    """A product that appears after the locks were taken was not locked, so its batches are not read."""
    stock(app, "LAMP")
    lines = [Allocate("o1", "LAMP", 1), Allocate("o1", "NEW", 1)]

    class Late(Transaction):
        def write(self, sql: Any, params: Any = ()) -> None:
            super().write(sql, params)
            if sql is LOCK_FREE_PRODUCTS:
                self.read("SELECT 1")  # the locks are taken, in a message of their own
                other.execute(text("INSERT INTO products VALUES ('NEW')"))
                other.execute(
                    text("INSERT INTO batches (reference, sku, purchased_quantity) VALUES ('n', 'NEW', 5)")
                )
                other.commit()

    with Late(app.runtime.engine) as transaction:
        found = read_ahead(transaction, lines)

    lamp, new = found[0], found[1]
    assert lamp is not None
    assert [row[0] for row in lamp.rows] == [None, "lamp"]
    assert new is None


def test_what_is_not_read_ahead_does_not_wait_behind_a_locked_product(app: MessagingApp, other: Connection):
    stock(app, "CHAIR")
    other.execute(text("SELECT FROM products WHERE sku = 'CHAIR' FOR NO KEY UPDATE"))
    units = [
        unit(app, Allocate("o1", "CHAIR", 1)),
        *(unit(app, CreateBatch(sku, sku, 1)) for sku in ("LAMP", "TABLE")),
    ]

    with SharedTransaction(app.runtime.engine, PATIENCE_MS) as transaction:
        rest, done = handle_in(transaction, app.runtime, units, time.monotonic() + 60)

    assert rest == units[:1]
    assert done.keys() == {unit.id for unit in units[1:]}


def test_the_time_of_a_message_does_not_count_what_another_one_waited_in_vain(
    app: MessagingApp, monkeypatch: pytest.MonkeyPatch
):
    stock(app, "CHAIR", "LAMP")
    allocate = app.runtime.project.bus.commands[Allocate]

    def waits_for_lamps(command: Allocate, uow: Any) -> Any:
        if command.sku == "LAMP":
            time.sleep(1)
            raise psycopg2.errors.LockNotAvailable
        return allocate(command, uow)

    monkeypatch.setitem(app.runtime.project.bus.commands, Allocate, waits_for_lamps)
    units = [unit(app, Allocate("o1", sku, 1)) for sku in ("CHAIR", "LAMP")]

    done = handle_together(app.runtime, units)

    assert done.keys() == {units[0].id}
    assert done[units[0].id].seconds < 1


@pytest.mark.parametrize(
    "odd",
    [
        lambda *_: 1 / 0,
        lambda *_: None,
        lambda *_: {0: [("LAMP",)]},
        lambda transaction, _: transaction.open() or {},
    ],
    ids=["fails", "returns nothing", "returns rows alone", "begins a unit of work"],
)
def test_a_project_whose_read_ahead_is_wrong_has_its_commands_carried_out_one_by_one(
    app: MessagingApp, monkeypatch: pytest.MonkeyPatch, odd: Any
):
    stock(app, "LAMP")
    monkeypatch.setattr(app.runtime, "project", replace(app.runtime.project, read_ahead=odd))

    outcomes, _ = handle_many(app.runtime, message(), COMMANDS[1:3])

    assert told(outcomes) == ["lamp", "InvalidSku"]


def test_a_command_that_names_a_wrong_field_as_its_lock_is_carried_out_alone(
    app: MessagingApp, monkeypatch: pytest.MonkeyPatch
):
    stock(app, "LAMP")
    monkeypatch.setattr(Allocate, "locks", "skuu")

    outcomes, _ = handle_many(app.runtime, message(), COMMANDS[1:3])

    assert told(outcomes) == ["lamp", "InvalidSku"]
