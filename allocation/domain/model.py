"""Products, their batches and the order lines allocated to them.

A product may be loaded in part: only the batches and lines that the decision at hand can need. What a batch
has allocated in total is kept as a number, so no decision has to add up lines.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date

from allocation.domain import events
from allocation.domain.errors import BatchAlreadyExists, UnknownBatch
from messaging.messages import Event


@dataclass(frozen=True)
class OrderLine:
    """A quantity of one SKU for one order; a value object, equal to any line with the same fields."""

    orderid: str
    sku: str
    qty: int


class Batch:
    """Purchased stock of one SKU, on the shelf (`eta` None) or on its way."""

    def __init__(
        self,
        reference: str,
        sku: str,
        purchased_quantity: int,
        eta: date | None = None,
        allocated_quantity: int = 0,
        lines: Iterable[OrderLine] = (),
    ) -> None:
        self.reference = reference
        self.sku = sku
        self.eta = eta
        self.purchased_quantity = purchased_quantity
        self.allocated_quantity = allocated_quantity
        self.lines = list(lines)  # in the order of their allocation

    def __repr__(self) -> str:
        return f"<Batch {self.reference}: {self.available_quantity} of {self.purchased_quantity} {self.sku}>"

    @property
    def available_quantity(self) -> int:
        """Pieces not allocated to any line; negative only while a reduced quantity is being settled."""
        return self.purchased_quantity - self.allocated_quantity

    def can_allocate(self, line: OrderLine) -> bool:
        """Tell whether the line is of this SKU and fits."""
        return self.sku == line.sku and self.available_quantity >= line.qty

    def allocate(self, line: OrderLine) -> None:
        """Give the line its pieces; allocating it again has no effect.

        Raises:
            ValueError: the line has another SKU, or more pieces than are available.
        """
        if line in self.lines:
            return
        if not self.can_allocate(line):
            raise ValueError(f"{line!r} does not fit into {self!r}")
        self.lines.append(line)
        self.allocated_quantity += line.qty

    def deallocate_one(self) -> OrderLine:
        """Take back the pieces of the line allocated last, and return that line."""
        line = self.lines.pop()
        self.allocated_quantity -= line.qty
        return line


def soonest_first(batch: Batch) -> tuple[bool, date, str]:
    """Sort the warehouse before shipments, earlier shipments before later ones, then by reference."""
    return batch.eta is not None, batch.eta or date.min, batch.reference


class Product:
    """The aggregate: all stock of one SKU. One command changes one product."""

    def __init__(self, sku: str, batches: Iterable[Batch] = (), short: Iterable[OrderLine] = ()) -> None:
        self.sku = sku
        self.batches = list(batches)
        self.short = set(short)  # lines that lost their stock and were reported
        self.events: list[Event] = []

    @property
    def key(self) -> str:
        """Return the SKU, which is the subject of the product's events."""
        return self.sku

    def add_batch(self, batch: Batch) -> None:
        """Add purchased stock; adding the same batch again has no effect.

        Raises:
            BatchAlreadyExists: a batch of that reference exists with another SKU, quantity or date.
        """
        existing = self._find(batch.reference)
        if existing is None:
            self.batches.append(batch)
            self.events.append(
                events.BatchCreated(batch.reference, batch.sku, batch.purchased_quantity, batch.eta)
            )
        elif _content(existing) != _content(batch):
            raise BatchAlreadyExists(f"Batch {batch.reference} already exists with other content")

    def allocate(self, line: OrderLine) -> str | None:
        """Allocate to the soonest batch with room and return its reference; None after recording OutOfStock.

        A line that is allocated already stays where it is.
        """
        batchref = self._place(line)
        if batchref is None:
            self.events.append(events.OutOfStock(line.sku))
        return batchref

    def reallocate(self, line: OrderLine) -> None:
        """Allocate a line that lost its stock; report it out of stock once until it is allocated again."""
        if self._place(line) is None and line not in self.short:
            self.short.add(line)
            self.events.append(events.OutOfStock(line.sku))

    def change_batch_quantity(self, ref: str, qty: int) -> None:
        """Correct a batch's quantity and give back the lines allocated last until the rest fits.

        Raises:
            UnknownBatch: no batch carries this reference.
        """
        batch = self._find(ref)
        if batch is None:
            raise UnknownBatch(f"Unknown batch {ref}")
        if batch.purchased_quantity == qty:
            return
        batch.purchased_quantity = qty
        self.events.append(events.BatchQuantityChanged(ref, self.sku, qty))
        while batch.available_quantity < 0:
            line = batch.deallocate_one()
            self.events.append(events.Deallocated(line.orderid, line.sku, line.qty))

    def _place(self, line: OrderLine) -> str | None:
        for batch in self.batches:
            if line in batch.lines:
                return batch.reference
        candidates = [batch for batch in self.batches if batch.can_allocate(line)]
        if not candidates:
            return None
        batch = min(candidates, key=soonest_first)
        batch.allocate(line)
        self.short.discard(line)
        self.events.append(events.Allocated(line.orderid, line.sku, line.qty, batch.reference))
        return batch.reference

    def _find(self, ref: str) -> Batch | None:
        return next((batch for batch in self.batches if batch.reference == ref), None)


def _content(batch: Batch) -> tuple[str, int, date | None]:
    return batch.sku, batch.purchased_quantity, batch.eta
