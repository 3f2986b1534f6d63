"""Commands that other apps can send. Limits stand beside the types and are checked when a message arrives."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from typing import Annotated, ClassVar

from messaging.messages import Command, Name, Whole


@dataclass(frozen=True)
class CreateBatch(Command):
    """Register purchased stock; `eta=None` means that it is already on the shelf."""

    locks: ClassVar[str | None] = "sku"

    ref: Name
    sku: Name
    qty: Annotated[int, Whole(1)]
    eta: date | None = None


@dataclass(frozen=True)
class Allocate(Command):
    """Reserve stock for an order line; the result is the batch reference, None when out of stock."""

    none_means: ClassVar[str] = "out of stock"
    locks: ClassVar[str | None] = "sku"

    orderid: Name
    sku: Name
    qty: Annotated[int, Whole(1)]


@dataclass(frozen=True)
class ChangeBatchQuantity(Command):
    """Correct a batch's purchased quantity; lines that no longer fit are given back and allocated again."""

    ref: Name
    qty: Annotated[int, Whole(0)]
