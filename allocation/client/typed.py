"""Each command as a function."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import TypedDict, Unpack

from allocation.domain import errors
from allocation.domain.commands import Allocate, ChangeBatchQuantity, CreateBatch
from messaging.brokers.signing import Signing
from messaging.client import Client
from reliable_celery.sentinel import Sentinel

#: Errors that answer a command whose contract names them.
REFUSALS = (errors.InvalidSku, errors.UnknownBatch, errors.BatchAlreadyExists)


class Options(TypedDict, total=False):
    """`key`: the idempotency key; repeating a command with the same key is harmless. `timeout_s`: seconds."""

    key: str | None
    timeout_s: float | None


class Connection(TypedDict, total=False):
    """`timeout_s`: how long a call waits for its answer. See `Client` for the others."""

    timeout_s: float
    signing: Signing | None
    ca_file: Path | None
    sentinel: Sentinel | None


class AllocationClient(Client):
    """Each command as a function that waits for its answer; `delay` sends without waiting, `many` in bulk.

    All raise `InvalidMessage`, `Unavailable` and `NotAnswered` (see `Client.call`).
    """

    def __init__(self, broker_url: str, backend_url: str, **options: Unpack[Connection]) -> None:
        """Nothing is connected yet; the options are those of `Client`."""
        super().__init__("allocation", broker_url, backend_url, refusals=REFUSALS, **options)

    def allocate(self, orderid: str, sku: str, qty: int, **options: Unpack[Options]) -> str | None:
        """Reserve stock; return the batch reference, None when out of stock.

        Raises:
            InvalidSku: no product carries the SKU.
        """
        batchref: str | None = self.call(Allocate(orderid, sku, qty), **options)
        return batchref

    def create_batch(
        self, ref: str, sku: str, qty: int, eta: date | None = None, **options: Unpack[Options]
    ) -> None:
        """Register purchased stock; `eta=None` means that it is already on the shelf.

        Raises:
            BatchAlreadyExists: the reference is taken by a batch of other content.
        """
        self.call(CreateBatch(ref, sku, qty, eta), **options)

    def change_batch_quantity(self, ref: str, qty: int, **options: Unpack[Options]) -> None:
        """Correct a batch's quantity; lines that no longer fit are allocated again elsewhere.

        Raises:
            UnknownBatch: no batch carries the reference.
        """
        self.call(ChangeBatchQuantity(ref, qty), **options)
