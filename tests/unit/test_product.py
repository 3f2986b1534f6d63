"""The domain: how stock is allocated."""

from __future__ import annotations

from datetime import date, timedelta

import pytest

from allocation.domain import events
from allocation.domain.errors import BatchAlreadyExists, UnknownBatch
from allocation.domain.model import Batch, OrderLine, Product

TODAY = date(2026, 1, 1)
TOMORROW = TODAY + timedelta(days=1)
LATER = TODAY + timedelta(days=10)


def lamps(*batches: Batch) -> Product:
    return Product("LAMP", batches)


def test_prefers_the_warehouse_to_shipments():
    product = lamps(Batch("shipment", "LAMP", 100, TODAY), Batch("shelf", "LAMP", 100))

    assert product.allocate(OrderLine("o1", "LAMP", 10)) == "shelf"


def test_prefers_earlier_shipments():
    product = lamps(
        Batch("slow", "LAMP", 100, LATER),
        Batch("soon", "LAMP", 100, TODAY),
        Batch("next", "LAMP", 100, TOMORROW),
    )

    assert product.allocate(OrderLine("o1", "LAMP", 10)) == "soon"


def test_batches_of_one_day_are_taken_in_the_order_of_their_references():
    product = lamps(Batch("b-2", "LAMP", 100, TODAY), Batch("b-1", "LAMP", 100, TODAY))

    assert product.allocate(OrderLine("o1", "LAMP", 10)) == "b-1"


def test_skips_a_batch_without_room():
    product = lamps(Batch("shelf", "LAMP", 9), Batch("shipment", "LAMP", 10, TODAY))

    assert product.allocate(OrderLine("o1", "LAMP", 10)) == "shipment"


def test_allocating_reduces_what_is_available_and_is_recorded():
    batch = Batch("b1", "LAMP", 20)
    product = lamps(batch)

    product.allocate(OrderLine("o1", "LAMP", 2))

    assert batch.available_quantity == 18
    assert product.events == [events.Allocated("o1", "LAMP", 2, "b1")]


def test_a_batch_gives_a_line_its_pieces_once():
    batch, line = Batch("b1", "LAMP", 3), OrderLine("o1", "LAMP", 2)

    batch.allocate(line)
    batch.allocate(line)

    assert batch.lines == [line]
    assert batch.available_quantity == 1


@pytest.mark.parametrize("line", [OrderLine("o1", "LAMP", 4), OrderLine("o1", "CHAIR", 1)])
def test_a_batch_refuses_a_line_that_does_not_fit(line):
    batch = Batch("b1", "LAMP", 3)

    with pytest.raises(ValueError, match="does not fit into <Batch b1: 3 of 3 LAMP>"):
        batch.allocate(line)

    assert batch.lines == []
    assert batch.available_quantity == 3


def test_allocating_a_line_twice_has_no_further_effect():
    batch = Batch("b1", "LAMP", 20)
    product = lamps(batch)

    first = product.allocate(OrderLine("o1", "LAMP", 2))
    second = product.allocate(OrderLine("o1", "LAMP", 2))

    assert first == second == "b1"
    assert batch.available_quantity == 18
    assert len(product.events) == 1


def test_a_line_stays_in_its_batch_even_if_that_is_full_now():
    product = lamps(Batch("b1", "LAMP", 2), Batch("b2", "LAMP", 10, TODAY))
    product.allocate(OrderLine("o1", "LAMP", 2))

    assert product.allocate(OrderLine("o1", "LAMP", 2)) == "b1"


def test_no_batch_with_room_raises_out_of_stock_and_allocates_nothing():
    batch = Batch("b1", "LAMP", 5)
    product = lamps(batch)

    assert product.allocate(OrderLine("o1", "LAMP", 6)) is None
    assert batch.available_quantity == 5
    assert product.events == [events.OutOfStock("LAMP")]


def test_a_line_may_take_a_batch_to_the_last_piece():
    assert lamps(Batch("b1", "LAMP", 5)).allocate(OrderLine("o1", "LAMP", 5)) == "b1"


def test_a_smaller_batch_gives_back_the_lines_allocated_last_until_the_rest_fits():
    batch = Batch("b1", "LAMP", 30)
    product = lamps(batch)
    for orderid, qty in (("o1", 10), ("o2", 5), ("o3", 10)):
        product.allocate(OrderLine(orderid, "LAMP", qty))
    product.events.clear()

    product.change_batch_quantity("b1", 12)

    assert batch.lines == [OrderLine("o1", "LAMP", 10)]
    assert batch.available_quantity == 2
    assert product.events == [
        events.BatchQuantityChanged("b1", "LAMP", 12),
        events.Deallocated("o3", "LAMP", 10),
        events.Deallocated("o2", "LAMP", 5),
    ]


def test_a_batch_that_is_still_large_enough_gives_nothing_back():
    product = lamps(Batch("b1", "LAMP", 30))
    product.allocate(OrderLine("o1", "LAMP", 10))
    product.events.clear()

    product.change_batch_quantity("b1", 10)

    assert product.events == [events.BatchQuantityChanged("b1", "LAMP", 10)]


def test_changing_a_quantity_to_the_same_value_has_no_effect():
    product = lamps(Batch("b1", "LAMP", 30))

    product.change_batch_quantity("b1", 30)

    assert product.events == []


def test_the_quantity_of_an_unknown_batch_cannot_be_changed():
    with pytest.raises(UnknownBatch, match="Unknown batch b9"):
        lamps().change_batch_quantity("b9", 1)


def test_the_same_batch_a_second_time_has_no_effect():
    product = lamps()

    product.add_batch(Batch("b1", "LAMP", 10, TODAY))
    product.add_batch(Batch("b1", "LAMP", 10, TODAY))

    assert len(product.batches) == 1
    assert product.events == [events.BatchCreated("b1", "LAMP", 10, TODAY)]


@pytest.mark.parametrize("other", [("CHAIR", 10, None), ("LAMP", 11, None), ("LAMP", 10, TODAY)])
def test_a_batch_of_the_same_reference_with_other_content_is_refused(other):
    product = lamps(Batch("b1", "LAMP", 10))

    with pytest.raises(BatchAlreadyExists, match="Batch b1 already exists with other content"):
        product.add_batch(Batch("b1", *other))
