"""The shop's commands and events."""

from dataclasses import dataclass
from datetime import date
from typing import Annotated

from messaging.messages import Command, Event, Name, Whole


@dataclass(frozen=True)
class CreateOrder(Command):
    """Take a customer's order; repeating it with the same content is harmless."""

    orderid: Name
    customer_id: Name
    placed_on: date
    items: Annotated[int, Whole(1)]
    amount: Annotated[int, Whole(0)]  # cents


@dataclass(frozen=True)
class OrderCreated(Event):
    """An order was taken."""

    orderid: Name
    customer_id: Name


@dataclass(frozen=True)
class CustomerBecameVIP(Event):
    """A customer's third order was recorded; this happens once in a customer's life."""

    customer_id: Name
