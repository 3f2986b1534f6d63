"""A correction of a batch that frees many lines."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from allocation.adapters.repository import LOAD_BY_BATCHREF
from allocation.domain.commands import Allocate, ChangeBatchQuantity, CreateBatch
from messaging.delivery import new_id
from messaging.messages import Command
from messaging.postgres.inbox import CommandJob
from messaging.worker.app import MessagingApp
from tests.integration.outbox import app_on, ask
from tests.integration.statements import recorded


@pytest.fixture
def app(clean_database: str) -> Iterator[MessagingApp]:
    """The backend's app over an empty database."""
    yield from app_on(clean_database)


def carry_out(app: MessagingApp, command: Command) -> None:
    """Carry out a command as a worker does."""
    job = CommandJob(new_id(), command, new_id())
    app.runtime.project.bus.handle_command(command, [], app.runtime.unit_of_work(job))


def test_all_lines_that_a_correction_frees_are_deleted_in_one_statement_for_each_table(app: MessagingApp):
    carry_out(app, CreateBatch("b1", "LAMP", 100))
    for number in range(20):
        carry_out(app, Allocate(f"o{number}", "LAMP", 5))
    ask(app, "INSERT INTO shortages VALUES ('o3', 'LAMP', 5), ('o3', 'LAMP', 6) RETURNING 1")

    with recorded(app) as messages:
        carry_out(app, ChangeBatchQuantity("b1", 7))

    deleted = [one for sent in messages for one in sent if one.startswith("DELETE")]
    assert deleted == ["DELETE_LINES", "DELETE_SHORTAGES"]
    assert ask(app, "SELECT orderid FROM allocations") == [("o0",)]
    assert ask(app, "SELECT orderid, qty FROM shortages") == [("o3", 6)]


def test_each_freed_line_is_found_in_the_index(app: MessagingApp):
    """Else each one costs a look at all that were freed before it, and ten thousand take many seconds."""
    carry_out(app, CreateBatch("b1", "LAMP", 100))
    for number in range(20):
        carry_out(app, Allocate(f"o{number}", "LAMP", 5))
    lock, _, query = LOAD_BY_BATCHREF.partition(";")
    facts = {"ref": "b1", "qty": 0}

    with app.runtime.engine.begin() as connection:
        connection.exec_driver_sql("SET LOCAL enable_seqscan = off; SET LOCAL enable_bitmapscan = off")
        connection.exec_driver_sql(lock, facts)
        plan = "\n".join(connection.exec_driver_sql(f"EXPLAIN {query}", facts).scalars())

    assert re.search(r"Index Cond: \(\(batch_reference = .*\) AND \(\"?position\"? <", plan), plan
