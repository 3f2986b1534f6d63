"""Units of work that share a transaction: what is undone, what is committed, and in which order they lock."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg2.errors
import pytest
from sqlalchemy import create_engine, text

from allocation.domain.commands import Allocate, ChangeBatchQuantity, CreateBatch
from messaging.delivery import new_id
from messaging.messages import Command
from messaging.postgres.inbox import CommandJob
from messaging.postgres.shared import SharedTransaction
from messaging.worker.app import MessagingApp
from messaging.worker.bulk import handle_many
from messaging.worker.group import Candidate, carry_out_together, in_lock_order
from messaging.worker.received import Received
from tests.integration.outbox import app_on, ask

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


def message(**facts: Any) -> Received:
    """Return a message with many commands."""
    given = {"redelivered": False, "expired": False, "queue": None, "key": None, "correlation_id": "c"}
    return Received(task_id=new_id(), task="allocation.many", **given | facts)


def candidate(command: Command, task_id: str | None = None, key: str | None = None) -> Candidate:
    """Return a command of a group."""
    return Candidate(CommandJob(task_id or new_id(), command, "c", key))


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
    first, copy, repeat = candidate(lamp, "id", "key"), candidate(lamp, "id"), candidate(lamp, key="key")

    assert carry_out_together(app.runtime, [first, copy, repeat]).keys() == {"id"}
    assert carry_out_together(app.runtime, [repeat, candidate(lamp)]) == {}


def test_a_group_locks_by_aggregate_and_keeps_the_order_of_each():
    """A command that does not say what it locks keeps its place."""
    commands = [
        Allocate("o1", "TABLE", 1),
        Allocate("o2", "LAMP", 1),
        CreateBatch("b1", "TABLE", 1),
        ChangeBatchQuantity("b1", 1),
        Allocate("o3", "TABLE", 1),
        Allocate("o4", "CHAIR", 1),
    ]

    ordered = [one.job.command for one in in_lock_order(map(candidate, commands))]

    assert ordered == [commands[index] for index in (1, 0, 2, 3, 5, 4)]


def test_a_group_whose_session_ends_has_done_nothing(app: MessagingApp):
    other = create_engine(app.runtime.settings.database_url)
    group = SharedTransaction(app.runtime.engine)
    group.open()
    group.read("INSERT INTO products VALUES ('LAMP') RETURNING sku")
    group.commit()
    with other.begin() as connection:
        connection.execute(
            text("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE state = 'idle in transaction'")
        )

    with pytest.raises(psycopg2.OperationalError):
        group.commit_all()
    group.end()
    other.dispose()
    assert ask(app, "SELECT sku FROM products") == []


def test_a_commit_that_postgresql_turns_into_a_rollback_is_an_error(app: MessagingApp):
    """PostgreSQL answers COMMIT with ROLLBACK, and no error, once a statement has failed."""
    group = SharedTransaction(app.runtime.engine)
    group.open()
    group.read("INSERT INTO products VALUES ('LAMP') RETURNING sku")
    group.commit()
    with pytest.raises(psycopg2.errors.DivisionByZero):
        group.read("SELECT 1 / 0")

    with pytest.raises(psycopg2.errors.InFailedSqlTransaction):
        group.commit_all()
    group.end()
    assert ask(app, "SELECT sku FROM products") == []


def test_a_unit_of_work_that_fails_on_an_earlier_ones_write_undoes_the_whole_group(app: MessagingApp):
    """Its own savepoint was not yet set, so only the group's end can undo the write."""
    group = SharedTransaction(app.runtime.engine)
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
    group.end()
    assert ask(app, "SELECT sku FROM products") == []
