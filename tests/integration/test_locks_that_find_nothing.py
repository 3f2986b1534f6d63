"""A lock on a missing row locks nothing; a row that appears right after it must not be used."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import psycopg2.errors
import pytest
from sqlalchemy import Connection, Engine, create_engine, text

from allocation.adapters.repository import LOAD_FOR_LINE, LOCK_PRODUCT
from allocation.bootstrap import project
from allocation.config import Settings
from allocation.domain.commands import Allocate, ChangeBatchQuantity, CreateBatch
from allocation.domain.errors import UnknownBatch
from allocation.domain.model import OrderLine
from allocation.service_layer.messagebus import bus
from local.waiting import eventually
from messaging.delivery import new_id
from messaging.messages import Command
from messaging.postgres.inbox import CommandJob
from messaging.postgres.outbox import Outbox
from messaging.postgres.transaction import Transaction
from messaging.postgres.unit_of_work import PostgresUnitOfWork


@pytest.fixture
def engine(clean_database: str) -> Iterator[Engine]:
    """One connection, for the command that is paused half-way."""
    engine = create_engine(clean_database, pool_size=1)
    yield engine
    engine.dispose()


@pytest.fixture
def other(clean_database: str) -> Iterator[Connection]:
    """A transaction that commits between the two statements of a command."""
    engine = create_engine(clean_database)
    with engine.connect() as connection:
        yield connection
    engine.dispose()


def unit_of_work(engine: Engine, command: Command) -> PostgresUnitOfWork:
    task_id = new_id()
    outbox = Outbox(engine)
    return project.unit_of_work(
        Settings(_env_file=None), engine, CommandJob(task_id, command, task_id), outbox
    )


@pytest.fixture
def start(engine: Engine) -> Iterator[Callable[[Command], Future[Any]]]:
    """Handle a command in a thread, on a connection that has prepared its statements."""

    def handle(command: Command) -> Any:
        return bus.handle_command(command, [], unit_of_work(engine, command))

    handle(CreateBatch("warm", "WARM", 9))
    handle(ChangeBatchQuantity("warm", 8))
    with ThreadPoolExecutor(1) as thread:
        yield lambda command: thread.submit(handle, command)


def waits_for_a_lock(other: Connection) -> bool:
    query = text("SELECT count(*) FROM pg_locks WHERE NOT granted")
    return bool(other.execute(query).scalar_one())


def add_batch(other: Connection, ref: str, sku: str, allocated: int) -> None:
    """Commit a new product with a batch of 5, partly allocated to another order."""
    other.execute(text("INSERT INTO products VALUES (:sku)"), {"sku": sku})
    other.execute(
        text("INSERT INTO batches (reference, sku, purchased_quantity) VALUES (:ref, :sku, 5)"),
        {"ref": ref, "sku": sku},
    )
    if allocated:
        other.execute(
            text("INSERT INTO allocations VALUES ('other', :sku, 5, :ref)"), {"ref": ref, "sku": sku}
        )
        other.execute(text("UPDATE batches SET allocated_quantity = 5 WHERE reference = :ref"), {"ref": ref})
    other.commit()


def test_an_order_sees_no_product_that_its_lock_did_not_find(engine: Engine, other: Connection):
    """Another transaction's batch appears between the command's two statements."""
    with Transaction(engine) as transaction:
        transaction.read(LOCK_PRODUCT, ("LAMP",))
        add_batch(other, "b1", "LAMP", allocated=0)

        assert transaction.read(LOAD_FOR_LINE, ("LAMP", "o1", 5)) == []


def test_an_order_sees_the_product_that_its_lock_found(engine: Engine, other: Connection):
    """Including rows committed while it waited."""
    add_batch(other, "b1", "LAMP", allocated=0)

    with Transaction(engine) as transaction:
        transaction.read(LOCK_PRODUCT, ("LAMP",))
        other.execute(text("UPDATE batches SET allocated_quantity = 1"))
        other.commit()

        _, with_room = transaction.read(LOAD_FOR_LINE, ("LAMP", "o1", 4))
        assert with_room[:5] == ("b1", "LAMP", 5, None, 1)


def test_a_correction_sees_no_batch_that_its_lock_did_not_find(other: Connection, start):
    """Otherwise, with the unlocked batch, it would discard the other order's pieces."""
    other.execute(text("LOCK TABLE allocations IN ACCESS EXCLUSIVE MODE"))
    correction = start(ChangeBatchQuantity("b1", 0))
    eventually(lambda: waits_for_a_lock(other), what="the command between its two statements")
    add_batch(other, "b1", "LAMP", allocated=5)

    with pytest.raises(UnknownBatch):
        correction.result(10)
    found = other.execute(
        text("SELECT purchased_quantity, allocated_quantity FROM batches WHERE sku = 'LAMP'")
    )
    assert found.one() == (5, 5)


def test_a_batch_that_was_changed_behind_the_lock_is_not_overwritten(engine: Engine, other: Connection):
    """If something bypasses the lock, a lost update is an error, never a wrong number."""
    add_batch(other, "b1", "LAMP", allocated=0)
    line = OrderLine("o1", "LAMP", 2)
    uow: Any = unit_of_work(engine, Allocate("o1", "LAMP", 2))

    with uow:
        uow.products.get_for_line(line).allocate(line)
        other.execute(text("UPDATE batches SET allocated_quantity = 3"))
        other.commit()
        with pytest.raises(psycopg2.errors.SerializationFailure):
            uow.commit()

    assert other.execute(text("SELECT allocated_quantity FROM batches")).scalar_one() == 3
