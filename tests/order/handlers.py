"""A project whose one handler keeps the order of each key, and fails at random."""

from __future__ import annotations

import os
import random
from dataclasses import dataclass, replace

from allocation.bootstrap import project as allocation_project
from allocation.service_layer.unit_of_work import UnitOfWork
from messaging.bus import MessageBus
from messaging.messages import Event
from messaging.options import handler

#: How often the handler fails, from 0 to 1.
FAILS = float(os.environ.get("ORDER_FAILS", "0"))


@dataclass(frozen=True)
class Moved(Event):
    """The number-th change of something."""

    key: str
    number: int


@handler(max_retries=1, backoff_max_s=1, in_order_by="key")
def record_move(event: Moved, uow: UnitOfWork) -> None:
    """Leave a row in the delivery's own transaction, before or after which it may fail."""
    if random.random() < FAILS / 2:
        raise RuntimeError("before")
    uow.transaction.write("INSERT INTO moves (key, number) VALUES (%s, %s)", (event.key, event.number))  # type: ignore[attr-defined]
    if random.random() < FAILS / 2:
        raise RuntimeError("after")


@handler(max_retries=1, backoff_max_s=1)
def ignore_order(_event: Moved, _uow: UnitOfWork) -> None:
    """Have no order."""


bus = allocation_project.bus
project = replace(
    allocation_project,
    bus=MessageBus(bus.commands, {**bus.events, Moved: [record_move, ignore_order]}),
)
