"""What must come of commands and events that are carried out one after the other, by the domain's classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from allocation.domain.commands import Allocate, ChangeBatchQuantity, CreateBatch
from allocation.domain.model import Batch, OrderLine, Product
from messaging.messages import Command, Event


class Model:
    """All stock, wholly in memory."""

    def __init__(self) -> None:
        self.products: dict[str, Product] = {}

    def carry_out(self, command: Command) -> Any:
        """Return the result of a command."""
        if isinstance(command, CreateBatch):
            product = self.products.setdefault(command.sku, Product(command.sku))
            product.add_batch(Batch(command.ref, command.sku, command.qty, command.eta))
        elif isinstance(command, Allocate):
            line = OrderLine(command.orderid, command.sku, command.qty)
            return self.products[command.sku].allocate(line)
        elif isinstance(command, ChangeBatchQuantity):
            for product in self.products.values():
                if any(batch.reference == command.ref for batch in product.batches):
                    product.change_batch_quantity(command.ref, command.qty)
                    # The lines that went are known to nobody else in the aggregate.
        return None

    def reallocate(self, payload: Mapping[str, Any]) -> None:
        """Carry out the reaction to a line that lost its stock."""
        line = OrderLine(payload["orderid"], payload["sku"], payload["qty"])
        self.products[line.sku].reallocate(line)

    def take_events(self) -> list[Event]:
        """Return what was raised since the last call."""
        events = [event for product in self.products.values() for event in product.events]
        for product in self.products.values():
            product.events = []
        return events

    def batches(self) -> dict[str, tuple[str, int, int]]:
        """Return SKU, purchased and allocated quantity by reference."""
        return {
            batch.reference: (batch.sku, batch.purchased_quantity, batch.allocated_quantity)
            for product in self.products.values()
            for batch in product.batches
        }

    def lines(self) -> set[tuple[str, str, int, str]]:
        """Return all lines with their batches."""
        return {
            (line.orderid, line.sku, line.qty, batch.reference)
            for product in self.products.values()
            for batch in product.batches
            for line in batch.lines
        }
