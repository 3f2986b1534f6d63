"""The project with misbehaving handlers; workers run it with `celery -A`."""

from __future__ import annotations

import sys
import time
from dataclasses import replace

from billiard.exceptions import SoftTimeLimitExceeded, Terminated, TimeLimitExceeded, WorkerLostError
from celery.exceptions import Ignore, Reject, Retry

import celeryconfig
from allocation.bootstrap import project as allocation_project
from allocation.domain.commands import Allocate
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


def raise_what_was_ordered(command: Allocate, _uow: UnitOfWork) -> None:
    """Fail with an error by which Celery's worker is told something else."""
    raise {
        "MemoryError": MemoryError("no room"),
        "Ignore": Ignore("not now"),
        "Retry": Retry("later"),
        "Reject": Reject("no", requeue=True),
        "WorkerLostError": WorkerLostError("lost"),
        "TimeLimitExceeded": TimeLimitExceeded(5.0),
        "Terminated": Terminated(9),
        "SoftTimeLimitExceeded": SoftTimeLimitExceeded(5.0),
    }[command.sku]


HANDLERS = [raise_what_cannot_be_encoded, raise_megabytes, exit_process, take_a_second]

bus = allocation_project.bus
commands = {**bus.commands, Allocate: raise_what_was_ordered}
project = replace(allocation_project, bus=MessageBus(commands, {**bus.events, OutOfStock: HANDLERS}))
app = make_app(project, celeryconfig)
