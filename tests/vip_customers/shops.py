"""The shop in memory and the shop on PostgreSQL, with the same interface."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date
from typing import Protocol

from examples.vip_customers.handlers import ShopUnitOfWork, bus
from examples.vip_customers.messages import CreateOrder, OrderCreated
from examples.vip_customers.model import History, Order
from messaging.delivery import Delivery, new_id
from messaging.fakes import InMemoryRepository, InMemoryUnitOfWork
from messaging.postgres.attempts import Attempt
from messaging.postgres.inbox import CommandJob
from messaging.project.runtime import Runtime
from messaging.retry import RetryPolicy
from messaging.worker.events import deliver


def order(number: int, customer_id: str = "harry", items: int = 1) -> CreateOrder:
    return CreateOrder(f"{customer_id}-{number}", customer_id, date(2026, 1, number), items, 999)


class Shop(Protocol):
    """The interface that the acceptance tests use."""

    def place(self, *orders: CreateOrder) -> None:
        """Place orders, and run all their consequences."""

    def tell(self, event: OrderCreated) -> None:
        """Handle an event that may have been handled before."""

    def is_vip(self, customer_id: str) -> bool: ...

    def congratulated(self) -> list[str]:
        """Return the congratulated customers, once per congratulation."""


class FakeOrders(InMemoryRepository[Order]):
    def get(self, orderid: str) -> Order | None:
        return self.load(orderid)

    def add(self, order: Order) -> None:
        self.track(order.orderid, order)


class FakeHistories(InMemoryRepository[History]):
    def get(self, customer_id: str) -> History:
        return self.load(customer_id) or self.track(customer_id, History(customer_id))


@dataclass
class FakeMails:
    """`down` makes it fail like a mail server."""

    recipients: list[str] = field(default_factory=list)
    down: bool = False

    def send(self, recipient: str, _subject: str, _text: str) -> None:
        if self.down:
            raise ConnectionRefusedError("the mail server is down")
        self.recipients.append(recipient)


class FakeShop(InMemoryUnitOfWork, ShopUnitOfWork):
    """The unit of work in memory; the whole bus runs in one process."""

    def __init__(self) -> None:
        super().__init__(bus.handlers_of)
        self.orders: FakeOrders = FakeOrders()
        self.histories: FakeHistories = FakeHistories()
        self.mails: FakeMails = FakeMails()

    def place(self, *orders: CreateOrder) -> None:
        for order in orders:
            bus.handle(order, self)

    def tell(self, event: OrderCreated) -> None:
        bus.handle(event, self)

    def is_vip(self, customer_id: str) -> bool:
        return self.histories.stored[customer_id].is_vip

    def congratulated(self) -> list[str]:
        return [recipient.partition("@")[0] for recipient in self.mails.recipients]


@dataclass
class PostgresShop:
    """The shop's own unit of work; deliveries are made here, one by one, instead of by workers."""

    runtime: Runtime
    congratulations: list[str] = field(default_factory=list)

    def take(self, order: CreateOrder) -> list[Delivery]:
        """Place an order and return its deliveries."""
        owed: list[Delivery] = []
        bus.handle_command(order, owed, self.runtime.unit_of_work(CommandJob(new_id(), order, new_id())))
        return owed

    def deliver(self, delivery: Delivery) -> list[Delivery]:
        """Make a delivery, unless it is done, and return the new ones that it causes."""
        if delivery.handler == "congratulate_vip_customer":
            self.congratulations.append(delivery.payload["customer_id"])
            return []
        [handler] = bus.events[bus.event_types[delivery.event_type]]
        return deliver(
            self.runtime, handler, RetryPolicy(), Attempt(self.runtime.engine, delivery.id, "test")
        )

    def deliver_all(self, deliveries: list[Delivery]) -> None:
        """Make deliveries and those that they cause."""
        for delivery in deliveries:
            self.deliver_all(self.deliver(delivery))

    def place(self, *orders: CreateOrder) -> None:
        for order in orders:
            self.deliver_all(self.take(order))

    def tell(self, event: OrderCreated) -> None:
        """Handle the event outside any delivery, like an operator's edited copy."""
        uow = self.runtime.unit_of_work(CommandJob(new_id(), order(1), new_id()))
        with uow:
            _, owed = bus.run(bus.events[OrderCreated][0], event, uow)
        self.deliver_all(owed)

    def is_vip(self, customer_id: str) -> bool:
        with self.runtime.engine.begin() as connection:
            query = "SELECT is_vip FROM histories WHERE customer_id = %s"
            return bool(connection.exec_driver_sql(query, (customer_id,)).scalar_one())

    def congratulated(self) -> list[str]:
        return self.congratulations
