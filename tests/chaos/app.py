"""The project with two more commands that kill workers, and a handler that keeps an order and fails."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass, replace

import celeryconfig
from allocation.bootstrap import project as allocation_project
from allocation.domain import events
from allocation.service_layer.messagebus import COMMAND_HANDLERS, EVENT_HANDLERS
from allocation.service_layer.unit_of_work import UnitOfWork
from messaging.bus import MessageBus
from messaging.messages import Command, Event, Name
from messaging.worker.app import make_app
from tests.chaos.in_order import record_move


@dataclass(frozen=True)
class KillWorker(Command):
    """Kill the pool's child (`whom` "child") or the worker's main process ("main"), or hang ("nobody")."""

    whom: Name


@dataclass(frozen=True)
class RaisePoison(Command):
    """Raise `PoisonRaised` for a product."""

    sku: Name


@dataclass(frozen=True)
class PoisonRaised(Event):
    """An event that kills every worker."""

    sku: Name


def kill_worker(cmd: KillWorker, _uow: UnitOfWork) -> None:
    """Die like a victim of the kernel's out-of-memory killer."""
    while cmd.whom == "nobody":
        time.sleep(60)  # until the time limit ends the process
    if cmd.whom == "main":
        os.kill(os.getppid(), signal.SIGKILL)
    os._exit(137)


def raise_poison(cmd: RaisePoison, uow: UnitOfWork) -> None:
    """Record the event on the product."""
    product = uow.products.get_or_create(cmd.sku, f"none of {cmd.sku}")
    product.events.append(PoisonRaised(cmd.sku))


def swallow_poison(_event: PoisonRaised, _uow: UnitOfWork) -> None:
    """Die."""
    os._exit(137)


project = replace(
    allocation_project,
    bus=MessageBus(
        {**COMMAND_HANDLERS, KillWorker: kill_worker, RaisePoison: raise_poison},
        {
            **EVENT_HANDLERS,
            PoisonRaised: [swallow_poison],
            events.Allocated: [*EVENT_HANDLERS[events.Allocated], record_move],
            events.Deallocated: [*EVENT_HANDLERS[events.Deallocated], record_move],
        },
    ),
)
app = make_app(project, celeryconfig)
