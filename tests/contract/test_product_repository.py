"""The fake and PostgreSQL answer commands the same way, so that tests on fakes can be trusted."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import date
from typing import Any, Protocol

import pytest
from sqlalchemy import create_engine, text

from allocation.bootstrap import project
from allocation.config import Settings
from allocation.domain.commands import Allocate, ChangeBatchQuantity, CreateBatch
from allocation.domain.errors import BatchAlreadyExists, InvalidSku, UnknownBatch
from allocation.domain.events import Allocated, Deallocated, OutOfStock
from allocation.service_layer.handlers import reallocate
from allocation.service_layer.messagebus import bus
from messaging.delivery import new_id
from messaging.messages import Command, Event
from messaging.postgres.inbox import CommandJob
from messaging.postgres.outbox import Outbox
from messaging.postgres.unit_of_work import PostgresUnitOfWork
from tests.fakes import FakeUnitOfWork

FRIDAY, MONDAY = date(2026, 1, 2), date(2026, 1, 5)


class Warehouse(Protocol):
    """One implementation of the warehouse."""

    events: list[Event]

    def handle(self, command: Command) -> Any: ...

    def react(self, event: Deallocated) -> None:
        """Run the reaction to a lost line."""

    def allocated(self) -> dict[str, tuple[int, int]]:
        """Return (purchased, allocated) by batch reference."""


class FakeWarehouse:
    def __init__(self) -> None:
        self.uow = FakeUnitOfWork(self._note)
        self.events: list[Event] = []

    def handle(self, command: Command) -> Any:
        return bus.handle_command(command, [], self.uow)

    def react(self, event: Deallocated) -> None:
        with self.uow:
            bus.run(reallocate, event, self.uow)

    def allocated(self) -> dict[str, tuple[int, int]]:
        return {
            batch.reference: (batch.purchased_quantity, batch.allocated_quantity)
            for product in self.uow.warehouse.values()
            for batch in product.batches
        }

    def _note(self, event: Event) -> list[str]:
        self.events.append(event)
        return []


class PostgresWarehouse:
    def __init__(self, url: str) -> None:
        self.engine = create_engine(url)
        self.events: list[Event] = []

    def handle(self, command: Command) -> Any:
        return bus.handle_command(command, [], self._unit_of_work(command))

    def react(self, event: Deallocated) -> None:
        with self._unit_of_work(Command()) as uow:
            bus.run(reallocate, event, uow)

    def _unit_of_work(self, command: Command) -> PostgresUnitOfWork:
        job = CommandJob(new_id(), command, new_id())
        outbox = Outbox(self.engine, self._note)
        return project.unit_of_work(Settings(_env_file=None), self.engine, job, outbox)

    def allocated(self) -> dict[str, tuple[int, int]]:
        with self.engine.begin() as connection:
            rows = connection.execute(
                text("SELECT reference, purchased_quantity, allocated_quantity FROM batches")
            )
            return {row[0]: (row[1], row[2]) for row in rows}

    def _note(self, event: Event) -> list[str]:
        self.events.append(event)
        return []


@pytest.fixture(params=["fake", "postgres"])
def warehouse(request: pytest.FixtureRequest) -> Iterator[Warehouse]:
    """Every test here runs on both."""
    if request.param == "fake":
        yield FakeWarehouse()
        return
    kept = PostgresWarehouse(request.getfixturevalue("clean_database"))
    yield kept
    kept.engine.dispose()


@pytest.fixture
def stocked(warehouse: Warehouse) -> Warehouse:
    """30 lamps on the shelf, 30 on Friday, 30 on Monday."""
    warehouse.handle(CreateBatch("shelf", "LAMP", 30))
    warehouse.handle(CreateBatch("monday", "LAMP", 30, MONDAY))
    warehouse.handle(CreateBatch("friday", "LAMP", 30, FRIDAY))
    warehouse.events.clear()
    return warehouse


def test_the_shelf_comes_first_then_the_earliest_shipment(stocked):
    batches = [stocked.handle(Allocate(f"o{n}", "LAMP", 20)) for n in range(4)]

    assert batches == ["shelf", "friday", "monday", None]


def test_a_small_line_fits_where_a_large_one_did_not(stocked):
    stocked.handle(Allocate("o1", "LAMP", 20))

    assert stocked.handle(Allocate("o2", "LAMP", 11)) == "friday"
    assert stocked.handle(Allocate("o3", "LAMP", 10)) == "shelf"
    assert stocked.allocated()["shelf"] == (30, 30)


def test_a_line_is_allocated_once_even_if_its_batch_is_full_now(stocked):
    first = stocked.handle(Allocate("o1", "LAMP", 30))
    stocked.events.clear()

    assert stocked.handle(Allocate("o1", "LAMP", 30)) == first == "shelf"
    assert stocked.allocated()["shelf"] == (30, 30)
    assert stocked.events == []


def test_a_line_that_would_fit_its_batch_twice_is_allocated_once(stocked):
    stocked.handle(Allocate("o1", "LAMP", 5))

    assert stocked.handle(Allocate("o1", "LAMP", 5)) == "shelf"
    assert stocked.allocated()["shelf"] == (30, 5)


def test_two_lines_of_one_order_differ_by_their_quantity(stocked):
    stocked.handle(Allocate("o1", "LAMP", 5))
    stocked.handle(Allocate("o1", "LAMP", 6))

    assert stocked.allocated()["shelf"] == (30, 11)


def test_an_unknown_sku_is_refused(stocked):
    with pytest.raises(InvalidSku, match="Invalid sku CHAIR"):
        stocked.handle(Allocate("o1", "CHAIR", 1))


def test_a_product_whose_batches_are_all_exhausted_is_out_of_stock_not_unknown(warehouse):
    warehouse.handle(CreateBatch("b1", "LAMP", 1))
    warehouse.handle(Allocate("o1", "LAMP", 1))

    assert warehouse.handle(Allocate("o2", "LAMP", 1)) is None


def test_the_same_batch_twice_is_one_batch(stocked):
    stocked.handle(CreateBatch("friday", "LAMP", 30, FRIDAY))

    assert stocked.allocated()["friday"] == (30, 0)
    assert stocked.events == []


@pytest.mark.parametrize(
    "command",
    [
        CreateBatch("friday", "LAMP", 31, FRIDAY),
        CreateBatch("friday", "LAMP", 30, MONDAY),
        CreateBatch("friday", "LAMP", 30),
        CreateBatch("friday", "CHAIR", 30, FRIDAY),
    ],
    ids=repr,
)
def test_a_reference_in_use_is_refused_with_other_content(stocked, command):
    with pytest.raises(BatchAlreadyExists):
        stocked.handle(command)

    assert stocked.allocated()["friday"] == (30, 0)


def test_lines_allocated_last_are_given_back_first(stocked):
    for orderid, qty in (("o1", 10), ("o2", 5), ("o3", 10)):
        stocked.handle(Allocate(orderid, "LAMP", qty))
    stocked.events.clear()

    stocked.handle(ChangeBatchQuantity("shelf", 12))

    assert stocked.allocated()["shelf"] == (12, 10)
    assert stocked.events[1:] == [Deallocated("o3", "LAMP", 10), Deallocated("o2", "LAMP", 5)]


def test_a_line_given_back_can_be_allocated_again_and_is_then_the_last_one(stocked):
    stocked.handle(Allocate("o1", "LAMP", 10))
    stocked.handle(Allocate("o2", "LAMP", 10))
    stocked.handle(ChangeBatchQuantity("shelf", 10))

    assert stocked.handle(Allocate("o2", "LAMP", 10)) == "friday"
    assert stocked.allocated()["shelf"] == (10, 10)


def test_a_line_that_lost_its_stock_twice_is_reported_out_of_stock_once(warehouse: Warehouse):
    """Its batch shrank, grew and shrank again, and its order was repeated in between."""
    warehouse.handle(CreateBatch("b1", "LAMP", 10))
    for qty in (0, 10, 0):
        warehouse.handle(Allocate("o1", "LAMP", 10))
        warehouse.handle(ChangeBatchQuantity("b1", qty))
    lost = [event for event in warehouse.events if isinstance(event, Deallocated)]
    warehouse.events.clear()

    for event in lost:
        warehouse.react(event)

    assert len(lost) == 2
    assert warehouse.events == [OutOfStock("LAMP")]


def test_a_line_that_was_reported_and_found_stock_again_is_reported_again(warehouse: Warehouse):
    warehouse.handle(CreateBatch("b1", "LAMP", 10))
    warehouse.handle(Allocate("o1", "LAMP", 10))
    for _ in range(2):
        warehouse.handle(ChangeBatchQuantity("b1", 0))
        warehouse.react(Deallocated("o1", "LAMP", 10))
        warehouse.handle(ChangeBatchQuantity("b1", 10))
        assert warehouse.handle(Allocate("o1", "LAMP", 10)) == "b1"

    assert warehouse.events.count(OutOfStock("LAMP")) == 2


def test_a_line_that_loses_its_stock_is_reported_although_an_older_release_left_its_shortage(
    clean_database: str,
):
    """That release allocates lines without checking the table of shortages."""
    warehouse = PostgresWarehouse(clean_database)
    warehouse.handle(CreateBatch("b1", "LAMP", 10))
    warehouse.handle(Allocate("o1", "LAMP", 10))
    with warehouse.engine.begin() as connection:
        connection.execute(text("INSERT INTO shortages VALUES ('o1', 'LAMP', 10)"))

    warehouse.handle(ChangeBatchQuantity("b1", 0))
    warehouse.react(Deallocated("o1", "LAMP", 10))

    assert warehouse.events.count(OutOfStock("LAMP")) == 1
    warehouse.engine.dispose()


def test_a_batch_can_shrink_to_nothing_and_grow_again(stocked):
    stocked.handle(Allocate("o1", "LAMP", 10))
    stocked.handle(ChangeBatchQuantity("shelf", 0))
    assert stocked.allocated()["shelf"] == (0, 0)

    stocked.handle(ChangeBatchQuantity("shelf", 40))

    assert stocked.handle(Allocate("o2", "LAMP", 40)) == "shelf"


def test_an_unknown_batch_is_refused(stocked):
    with pytest.raises(UnknownBatch, match="Unknown batch tuesday"):
        stocked.handle(ChangeBatchQuantity("tuesday", 1))


def test_allocating_raises_an_event(stocked):
    stocked.handle(Allocate("o1", "LAMP", 10))

    assert stocked.events == [Allocated("o1", "LAMP", 10, "shelf")]


def test_references_sort_by_code_point_as_in_python(warehouse: Warehouse):
    references = ["b", "B", "a-1", "a_1", "é", "a1"]
    for reference in references:
        warehouse.handle(CreateBatch(reference, "LAMP", 1))

    taken = [warehouse.handle(Allocate(f"o{n}", "LAMP", 1)) for n in range(len(references))]

    assert taken == sorted(references)
