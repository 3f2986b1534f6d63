"""What happened to stock."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from typing import Annotated, ClassVar

from messaging.messages import Event, Name, Whole


@dataclass(frozen=True)
class BatchCreated(Event):
    """Stock was registered."""

    ref: Name
    sku: Name
    qty: Annotated[int, Whole(1)]
    eta: date | None = None


@dataclass(frozen=True)
class BatchQuantityChanged(Event):
    """A batch's purchased quantity was corrected."""

    ref: Name
    sku: Name
    qty: Annotated[int, Whole(0)]


@dataclass(frozen=True)
class Allocated(Event):
    """An order line was promised stock of a batch."""

    orderid: Name
    sku: Name
    qty: Annotated[int, Whole(1)]
    batchref: Name


@dataclass(frozen=True)
class Deallocated(Event):
    """An order line lost its stock, since its batch turned out smaller."""

    locks: ClassVar[str | None] = "sku"

    orderid: Name
    sku: Name
    qty: Annotated[int, Whole(1)]


@dataclass(frozen=True)
class OutOfStock(Event):
    """An order line found no batch with room."""

    sku: Name
