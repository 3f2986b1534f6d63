"""A project whose handlers have both limits, for themselves or for each key, and leave when they ran."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from allocation.bootstrap import project as allocation_project
from allocation.service_layer.unit_of_work import UnitOfWork
from messaging.bus import MessageBus
from messaging.messages import Event
from messaging.options import handler

#: Seconds that each run takes.
RUNS_S = 0.2

TABLE = "CREATE TABLE runs (handler text, key text, number integer, began timestamptz, ended timestamptz)"


@dataclass(frozen=True)
class Called(Event):
    """The number-th call of somebody."""

    key: str
    number: int


def _run(name: str, event: Called, uow: UnitOfWork) -> None:
    transaction = uow.transaction  # type: ignore[attr-defined]
    [(began,)] = transaction.read("SELECT clock_timestamp()")
    time.sleep(RUNS_S)
    facts = (name, event.key, event.number, began)
    transaction.write("INSERT INTO runs VALUES (%s, %s, %s, %s, clock_timestamp())", facts)


@handler(max_concurrent=2, rate="5/s")
def often_free(event: Called, uow: UnitOfWork) -> None:
    """Be limited by its rate: its places are free most of the time."""
    _run("often_free", event, uow)


@handler(max_concurrent=1, rate="50/s")
def often_full(event: Called, uow: UnitOfWork) -> None:
    """Be limited by its places: its times come more often."""
    _run("often_full", event, uow)


@handler(max_concurrent=1, rate="2/s", limit_by="key")
def each_key(event: Called, uow: UnitOfWork) -> None:
    """Have both limits for each key."""
    _run("each_key", event, uow)


def unlimited(event: Called, uow: UnitOfWork) -> None:
    """Have none."""
    _run("unlimited", event, uow)


bus = allocation_project.bus
project = replace(
    allocation_project,
    bus=MessageBus(bus.commands, {**bus.events, Called: [often_free, often_full, each_key, unlimited]}),
)
