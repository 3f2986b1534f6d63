"""Two aggregates: an order, which is all that has to succeed, and a history, which knows who is a VIP."""

from dataclasses import dataclass, field
from datetime import date

from examples.vip_customers.messages import CustomerBecameVIP, OrderCreated
from messaging.messages import Event

ORDERS_OF_A_VIP = 3


@dataclass
class Order:
    """What a customer bought at once; `amount` is in cents."""

    orderid: str
    customer_id: str
    placed_on: date
    items: int
    amount: int
    events: list[Event] = field(default_factory=list, compare=False)

    def place(self) -> None:
        """Record that the order was taken."""
        self.events.append(OrderCreated(self.orderid, self.customer_id))


@dataclass
class History:
    """The orders of one customer; those of a VIP may be left out, since nothing depends on them."""

    customer_id: str
    is_vip: bool = False
    orders: set[str] = field(default_factory=set)
    events: list[Event] = field(default_factory=list, compare=False)

    def record_order(self, orderid: str) -> None:
        """Count an order once, however often and in whatever order events arrive; the third makes a VIP."""
        self.orders.add(orderid)
        if len(self.orders) >= ORDERS_OF_A_VIP and not self.is_vip:
            self.is_vip = True
            self.events.append(CustomerBecameVIP(self.customer_id))
