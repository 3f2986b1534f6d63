"""Handlers, run in one process on fakes."""

from __future__ import annotations

import datetime  # noqa: ICN001  # the name in the repr of a date
import logging

import pytest

from allocation.domain import commands, events
from allocation.domain.errors import BatchAlreadyExists, InvalidSku, UnknownBatch
from allocation.domain.model import OrderLine
from allocation.service_layer import messagebus
from tests.fakes import FakeUnitOfWork


@pytest.fixture
def uow() -> FakeUnitOfWork:
    return FakeUnitOfWork()


def test_a_created_batch_is_stock_of_its_product(uow):
    messagebus.handle(commands.CreateBatch("b1", "LAMP", 100, None), uow)

    assert [batch.reference for batch in uow.warehouse["LAMP"].batches] == ["b1"]
    assert uow.committed == 1


def test_the_result_of_allocate_is_the_batch_reference(uow):
    messagebus.handle(commands.CreateBatch("b1", "LAMP", 100), uow)

    assert messagebus.handle(commands.Allocate("o1", "LAMP", 10), uow) == ["b1"]


def test_an_unknown_sku_is_refused_to_the_sender_and_nothing_is_committed(uow):
    with pytest.raises(InvalidSku, match="Invalid sku NOTHING"):
        messagebus.handle(commands.Allocate("o1", "NOTHING", 10), uow)

    assert uow.committed == 0


def test_an_unknown_batch_is_refused_to_the_sender(uow):
    with pytest.raises(UnknownBatch, match="Unknown batch b1"):
        messagebus.handle(commands.ChangeBatchQuantity("b1", 10), uow)


def test_a_reference_that_another_product_uses_is_refused(uow):
    messagebus.handle(commands.CreateBatch("b1", "LAMP", 100), uow)

    with pytest.raises(BatchAlreadyExists):
        messagebus.handle(commands.CreateBatch("b1", "CHAIR", 100), uow)


def test_the_stock_team_is_notified_of_an_order_that_could_not_be_allocated(uow):
    messagebus.handle(commands.CreateBatch("b1", "LAMP", 9), uow)

    assert messagebus.handle(commands.Allocate("o1", "LAMP", 10), uow) == [None]
    assert uow.notifications.sent == ["Out of stock for LAMP"]


def test_a_command_returns_its_deliveries_and_runs_none_of_them(uow):
    messagebus.handle(commands.CreateBatch("b1", "LAMP", 9), uow)
    owed = []

    messagebus.handle_command(commands.Allocate("o1", "LAMP", 10), owed, uow)

    assert [(delivery.event, delivery.handler) for delivery in owed] == [
        (events.OutOfStock("LAMP"), "send_out_of_stock_notification")
    ]
    assert uow.outbox == owed
    assert uow.notifications.sent == []


def test_an_unavailable_mail_server_does_not_affect_the_command(uow, caplog):
    messagebus.handle(commands.CreateBatch("b1", "LAMP", 9), uow)
    uow.notifications.down = True

    assert messagebus.handle(commands.Allocate("o1", "LAMP", 10), uow) == [None]
    assert "Exception handling event OutOfStock(sku='LAMP')" in caplog.text


def test_lines_that_no_longer_fit_are_allocated_again_elsewhere(uow):
    for cmd in (
        commands.CreateBatch("b1", "LAMP", 50),
        commands.CreateBatch("b2", "LAMP", 50, datetime.date(2026, 1, 1)),
        commands.Allocate("o1", "LAMP", 20),
        commands.Allocate("o2", "LAMP", 20),
    ):
        messagebus.handle(cmd, uow)

    messagebus.handle(commands.ChangeBatchQuantity("b1", 25), uow)

    first, second = uow.warehouse["LAMP"].batches
    assert first.lines == [OrderLine("o1", "LAMP", 20)]
    assert second.lines == [OrderLine("o2", "LAMP", 20)]


def test_the_log_line_before_handling_recreates_the_message(uow, caplog):
    caplog.set_level(logging.DEBUG)
    command = commands.CreateBatch("b1", 'LAMP\'s "finest"', 9, datetime.date(2026, 1, 1))

    messagebus.handle(command, uow)

    [line] = [record.getMessage() for record in caplog.records if "Handling" in record.getMessage()]
    logged = line.removeprefix("Handling ").rpartition(" with ")[0]
    assert eval(logged, {"datetime": datetime, **vars(commands)}) == command  # noqa: S307  # our own repr


def test_every_event_of_the_domain_is_known_to_the_bus():
    declared = {kind for kind in vars(events).values() if isinstance(kind, type)} & set(
        events.Event.__subclasses__()
    )

    assert declared == set(messagebus.EVENT_HANDLERS)
