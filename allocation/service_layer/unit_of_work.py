"""The ports of the service layer: where products are kept, and how people are notified."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from allocation.domain.model import OrderLine, Product
from messaging.unit_of_work import Repository
from messaging.unit_of_work import UnitOfWork as MessagingUnitOfWork


class ProductRepository(Repository, Protocol):
    """Loads the slice of a product that one decision needs, and locks the product until the end."""

    def get_for_line(self, line: OrderLine) -> Product | None:
        """Return the line's product with the batch that holds the line, if any, and the soonest with room.

        It also knows whether the line was reported short.

        None where no product carries the SKU.
        """

    def get_or_create(self, sku: str, batchref: str) -> Product:
        """Return the product of a SKU, new if need be, with the batch of that reference if it exists."""

    def get_by_batchref(self, batchref: str, qty: int) -> Product | None:
        """Return the product with this batch and the lines allocated last that exceed `qty` pieces.

        None where no batch carries the reference.
        """


class Notifications(Protocol):
    """Notifies people."""

    def send(self, subject: str, text: str) -> None:
        """Send a message to the stock team, at least once; a repeat carries the same id."""


class UnitOfWork(MessagingUnitOfWork):
    """One transaction around one handler of this project."""

    products: ProductRepository
    notifications: Notifications

    def repositories(self) -> Iterable[Repository]:
        """Return the products, the only repository of this project."""
        return (self.products,)
