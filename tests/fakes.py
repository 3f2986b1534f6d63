"""Fakes on the ports: a whole warehouse in memory. The contract tests hold them to PostgreSQL's behaviour."""

from __future__ import annotations

from dataclasses import dataclass, field

from allocation.domain.model import OrderLine, Product
from allocation.service_layer.unit_of_work import UnitOfWork
from messaging.messages import Event


class FakeProductRepository:
    """Implements the port `ProductRepository`; always loads whole products."""

    def __init__(self, products: dict[str, Product]) -> None:
        self.seen: list[Product] = []
        self._products = products

    def get_for_line(self, line: OrderLine) -> Product | None:
        return self._track(self._products.get(line.sku))

    def get_or_create(self, sku: str, batchref: str) -> Product:
        holder = self._holder(batchref)
        if holder is not None and holder.sku != sku:
            # As in PostgreSQL: the other product's batch comes along, to be told apart.
            return Product(sku, [batch for batch in holder.batches if batch.reference == batchref])
        product = self._products.setdefault(sku, Product(sku))
        self._track(product)
        return product

    def get_by_batchref(self, batchref: str, _qty: int) -> Product | None:
        return self._track(self._holder(batchref))

    def _holder(self, batchref: str) -> Product | None:
        for product in self._products.values():
            if any(batch.reference == batchref for batch in product.batches):
                return product
        return None

    def _track(self, product: Product | None) -> Product | None:
        if product is not None:
            self.seen.append(product)
        return product


@dataclass
class FakeNotifications:
    """Implements the port `Notifications`; `down` makes it fail as a mail server does."""

    sent: list[str] = field(default_factory=list)
    down: bool = False

    def send(self, subject: str, _text: str) -> None:
        if self.down:
            raise ConnectionRefusedError("the mail server is away")
        self.sent.append(subject)


class FakeUnitOfWork(UnitOfWork):
    """Keeps everything in memory, and hands the events to the bus, which then runs whole in one process."""

    def __init__(self) -> None:
        self.warehouse: dict[str, Product] = {}
        self.notifications: FakeNotifications = FakeNotifications()
        self.products = FakeProductRepository(self.warehouse)
        self.committed = 0
        self._new_events: list[Event] = []

    def commit(self, _result: object = None) -> None:
        self.committed += 1
        self._new_events = self.take_events()

    def rollback(self) -> None:
        self.products.seen.clear()

    def collect_new_events(self) -> list[Event]:
        events, self._new_events = self._new_events, []
        return events
