"""A function per command and per reaction. The bus opens the unit of work and commits it."""

from __future__ import annotations

from allocation.domain import commands, events
from allocation.domain.errors import InvalidSku, UnknownBatch
from allocation.domain.model import Batch, OrderLine
from allocation.service_layer.unit_of_work import UnitOfWork
from messaging.options import handler


def add_batch(cmd: commands.CreateBatch, uow: UnitOfWork) -> None:
    """Register purchased stock."""
    product = uow.products.get_or_create(cmd.sku, cmd.ref)
    product.add_batch(Batch(cmd.ref, cmd.sku, cmd.qty, cmd.eta))


def allocate(cmd: commands.Allocate, uow: UnitOfWork) -> str | None:
    """Reserve stock for an order line; return the batch reference, None when out of stock."""
    line = OrderLine(cmd.orderid, cmd.sku, cmd.qty)
    product = uow.products.get_for_line(line)
    if product is None:
        raise InvalidSku(f"Invalid sku {cmd.sku}")
    return product.allocate(line)


def change_batch_quantity(cmd: commands.ChangeBatchQuantity, uow: UnitOfWork) -> None:
    """Correct a batch's quantity."""
    product = uow.products.get_by_batchref(cmd.ref, cmd.qty)
    if product is None:
        raise UnknownBatch(f"Unknown batch {cmd.ref}")
    product.change_batch_quantity(cmd.ref, cmd.qty)


@handler(shares_transaction=True)
def reallocate(event: events.Deallocated, uow: UnitOfWork) -> None:
    """Allocate a line again that lost its stock."""
    line = OrderLine(event.orderid, event.sku, event.qty)
    product = uow.products.get_for_line(line)
    if product is None:
        raise InvalidSku(f"Invalid sku {event.sku}")
    product.reallocate(line)


def send_out_of_stock_notification(event: events.OutOfStock, uow: UnitOfWork) -> None:
    """Tell the stock team about an order line that could not be allocated."""
    uow.notifications.send(f"Out of stock for {event.sku}", f"No batch has room for an order of {event.sku}.")
