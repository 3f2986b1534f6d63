"""A later release of the project: a new field, a renamed handler, a removed command."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

import celeryconfig
from allocation.bootstrap import project as allocation_project
from allocation.domain import commands, events
from allocation.service_layer import handlers
from allocation.service_layer.unit_of_work import UnitOfWork
from messaging.bus import MessageBus
from messaging.messages import Whole
from messaging.worker.app import make_app


@dataclass(frozen=True)
class Allocate(commands.Allocate):
    """Reserve stock; the urgency is new."""

    priority: Annotated[int, Whole(0, 9)] = 0


def tell_stock_team(event: events.OutOfStock, uow: UnitOfWork) -> None:
    """`send_out_of_stock_notification` under a new name."""
    handlers.send_out_of_stock_notification(event, uow)


project = replace(
    allocation_project,
    bus=MessageBus(
        {Allocate: handlers.allocate, commands.CreateBatch: handlers.add_batch},
        {events.OutOfStock: [tell_stock_team]},
    ),
    renamed_handlers={"send_out_of_stock_notification": "tell_stock_team"},
)
app = make_app(project, celeryconfig)
