"""A handler on fakes meets the events that a worker would, and what no worker could read fails at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import pytest

from messaging.bus import MessageBus
from messaging.errors import InvalidMessage
from messaging.messages import Command, Event, Name
from tests.fakes import FakeUnitOfWork


class Colour(StrEnum):
    """A type that does not survive JSON."""

    RED = "red"


@dataclass(frozen=True)
class Paint(Command):
    sku: Name


@dataclass(frozen=True)
class Painted(Event):
    colour: Colour


@dataclass(frozen=True)
class Named(Event):
    name: Name


@dataclass(frozen=True, slots=True)
class Weighed(Event):
    weight: float


def raising(event: Event) -> Callable[[Any, Any], None]:
    """Return a handler of a command that raises this event."""

    def paint(command: Paint, uow: FakeUnitOfWork) -> None:
        uow.products.get_or_create(command.sku, "b1").events.append(event)

    return paint


@pytest.mark.parametrize(
    ("event", "problem"),
    [
        (Painted(Colour.RED), "The field colour of Painted: Colour does not survive JSON"),
        (Named(""), "name must have at least 1 character"),
    ],
)
def test_an_event_that_no_worker_could_read_fails_its_command_on_fakes(event: Event, problem: str):
    bus = MessageBus({Paint: raising(event)}, {type(event): [lambda _event, _uow: None]})
    uow = FakeUnitOfWork(bus.handlers_of)

    with pytest.raises(InvalidMessage, match=problem):
        bus.handle(Paint("LAMP"), uow)
    assert (uow.warehouse, uow.outbox) == ({}, [])


def test_a_handler_on_fakes_gets_the_event_as_a_worker_reads_it():
    seen: list[Any] = []
    bus = MessageBus({Paint: raising(Weighed(2))}, {Weighed: [lambda event, _uow: seen.append(event)]})

    bus.handle(Paint("LAMP"), FakeUnitOfWork(bus.handlers_of))

    assert seen == [Weighed(2.0)]
    assert type(seen[0].weight) is float
