"""Which handlers a message has. A new command or event takes a dataclass, a function and a line here."""

from __future__ import annotations

from allocation.domain import commands, events
from allocation.service_layer import handlers
from messaging.bus import Handler, MessageBus
from messaging.messages import Command, Event

EVENT_HANDLERS: dict[type[Event], list[Handler]] = {
    events.OutOfStock: [handlers.send_out_of_stock_notification],
    events.Deallocated: [handlers.reallocate],
    events.Allocated: [],
    events.BatchCreated: [],
    events.BatchQuantityChanged: [],
}

COMMAND_HANDLERS: dict[type[Command], Handler] = {
    commands.Allocate: handlers.allocate,
    commands.CreateBatch: handlers.add_batch,
    commands.ChangeBatchQuantity: handlers.change_batch_quantity,
}

bus = MessageBus(COMMAND_HANDLERS, EVENT_HANDLERS)
handle = bus.handle
handle_command = bus.handle_command
handle_event = bus.handle_event
