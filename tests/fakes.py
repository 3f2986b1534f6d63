"""Fakes of the ports: a whole warehouse in memory. Contract tests compare them with PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from allocation.domain.model import OrderLine, Product
from allocation.service_layer.messagebus import bus
from allocation.service_layer.unit_of_work import UnitOfWork
from messaging.fakes import InMemoryRepository, InMemoryUnitOfWork
from messaging.messages import Event


class FakeProductRepository(InMemoryRepository[Product]):
    """Implements the port `ProductRepository`; always loads whole products."""

    def get_for_line(self, line: OrderLine) -> Product | None:
        return self.load(line.sku)

    def get_or_create(self, sku: str, batchref: str) -> Product:
        holder = self._holder(batchref)
        if holder is not None and holder.sku != sku:
            # As in PostgreSQL: include the other product's batch, so that the conflict is seen.
            return Product(sku, [batch for batch in holder.batches if batch.reference == batchref])
        return self.load(sku) or self.track(sku, Product(sku))

    def get_by_batchref(self, batchref: str, _qty: int) -> Product | None:
        holder = self._holder(batchref)
        return self.load(holder.sku) if holder else None

    def _holder(self, batchref: str) -> Product | None:
        for product in self.stored.values():
            if any(batch.reference == batchref for batch in product.batches):
                return product
        return None


@dataclass
class FakeNotifications:
    """Implements the port `Notifications`; `down` makes it fail like a mail server."""

    sent: list[str] = field(default_factory=list)
    down: bool = False

    def send(self, subject: str, _text: str) -> None:
        if self.down:
            raise ConnectionRefusedError("the mail server is down")
        self.sent.append(subject)


class FakeUnitOfWork(InMemoryUnitOfWork, UnitOfWork):
    """Keeps everything in memory; the whole bus runs in one process."""

    def __init__(self, handlers_of: Callable[[Event], list[str]] = bus.handlers_of) -> None:
        super().__init__(handlers_of)
        self.products: FakeProductRepository = FakeProductRepository()
        self.notifications: FakeNotifications = FakeNotifications()

    @property
    def warehouse(self) -> dict[str, Product]:
        return self.products.stored
