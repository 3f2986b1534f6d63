"""The release in which the handler has its new name."""

from __future__ import annotations

from dataclasses import replace

import celeryconfig
from allocation.service_layer.unit_of_work import UnitOfWork
from messaging.bus import MessageBus
from messaging.options import handler
from messaging.worker.app import make_app
from tests.order import handlers


@handler(max_retries=1, backoff_max_s=1, in_order_by="key")
def write_move(event: handlers.Moved, uow: UnitOfWork) -> None:
    """Do what `record_move` did."""
    handlers.record_move(event, uow)


bus = handlers.project.bus
project = replace(
    handlers.project,
    bus=MessageBus(bus.commands, {**bus.events, handlers.Moved: [write_move, handlers.ignore_order]}),
    renamed_handlers={**handlers.project.renamed_handlers, "record_move": "write_move"},
)
app = make_app(project, celeryconfig)
