"""What the shop does with each message, and the ports that this needs."""

from email.headerregistry import Address
from typing import Protocol

from examples.vip_customers.messages import CreateOrder, CustomerBecameVIP, OrderCreated
from examples.vip_customers.model import History, Order
from messaging.adapters.mail import Mails
from messaging.bus import MessageBus
from messaging.errors import InvalidMessage
from messaging.unit_of_work import Repository, UnitOfWork


class Orders(Repository, Protocol):
    """Orders by their id."""

    def get(self, orderid: str) -> Order | None: ...
    def add(self, order: Order) -> None: ...


class Histories(Repository, Protocol):
    """Histories by customer; `get` creates one if needed and locks it until the transaction ends."""

    def get(self, customer_id: str) -> History: ...


class ShopUnitOfWork(UnitOfWork):
    """One transaction around one handler of the shop."""

    orders: Orders
    histories: Histories
    mails: Mails

    def repositories(self) -> tuple[Repository, ...]:
        return self.orders, self.histories


def create_order(cmd: CreateOrder, uow: ShopUnitOfWork) -> None:
    """Take an order: the only part that a customer waits for."""
    order = Order(cmd.orderid, cmd.customer_id, cmd.placed_on, cmd.items, cmd.amount)
    existing = uow.orders.get(cmd.orderid)
    if existing is None:
        order.place()
        uow.orders.add(order)
    elif existing != order:
        raise InvalidMessage("orderid", "was used before, for another order")


def update_customer_history(event: OrderCreated, uow: ShopUnitOfWork) -> None:
    """Record an order in its customer's history."""
    uow.histories.get(event.customer_id).record_order(event.orderid)


def congratulate_vip_customer(event: CustomerBecameVIP, uow: ShopUnitOfWork) -> None:
    """Send a mail to a new VIP."""
    recipient = Address(username=event.customer_id, domain="customers.example.com").addr_spec
    uow.mails.send(recipient, "Congratulations, you are a VIP", "Thank you for your third order.")


bus = MessageBus(
    commands={CreateOrder: create_order},
    events={OrderCreated: [update_customer_history], CustomerBecameVIP: [congratulate_vip_customer]},
)
