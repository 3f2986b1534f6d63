"""The project with misbehaving handlers; workers run it with `celery -A`."""

from __future__ import annotations

import sys
import time
from dataclasses import replace

import celeryconfig
from allocation.bootstrap import project as allocation_project
from allocation.domain.events import OutOfStock
from allocation.service_layer.unit_of_work import UnitOfWork
from messaging.bus import MessageBus
from messaging.worker.app import make_app


def raise_what_cannot_be_encoded(_event: OutOfStock, _uow: UnitOfWork) -> None:
    """Fail with a lone surrogate."""
    raise ValueError("\ud800")


def raise_megabytes(_event: OutOfStock, _uow: UnitOfWork) -> None:
    """Fail with a text too large for any header."""
    raise ValueError("x" * 10_000_000)


def exit_process(_event: OutOfStock, _uow: UnitOfWork) -> None:
    """Exit the process."""
    sys.exit("no more")


def take_a_second(_event: OutOfStock, _uow: UnitOfWork) -> None:
    """Take longer than a forged time limit."""
    time.sleep(1)


HANDLERS = [raise_what_cannot_be_encoded, raise_megabytes, exit_process, take_a_second]

bus = allocation_project.bus
project = replace(allocation_project, bus=MessageBus(bus.commands, {**bus.events, OutOfStock: HANDLERS}))
app = make_app(project, celeryconfig)
