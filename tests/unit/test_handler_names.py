"""A delivery refers to its handler by name, so a project with ambiguous names does not start."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

import celeryconfig
from allocation.bootstrap import project
from allocation.domain.events import Deallocated, OutOfStock
from messaging.bus import MessageBus
from messaging.messages import Event
from messaging.worker.app import make_app


def called(name: str) -> Callable[..., None]:
    """Return a handler of that name."""

    def handler(_event: Event, _uow: object) -> None:
        """Do nothing."""

    handler.__name__ = name
    return handler


async def wait(_event: Event, _uow: object) -> None:
    """A coroutine function."""


def count(_event: Event, _uow: object) -> Iterator[int]:
    """A generator: a call does not run it."""
    yield 1


async def count_later(_event: Event, _uow: object) -> AsyncIterator[int]:
    """An async generator."""
    yield 1


REFUSED: list[tuple[dict[type[Event], list[Any]], str]] = [
    (
        {OutOfStock: [called("notify")], Deallocated: [called("notify")]},
        "Two event handlers are called notify",
    ),
    ({OutOfStock: [called("allocate")]}, "called allocate: another task has that name"),
    ({OutOfStock: [called("many")]}, "called many: another task has that name"),
    ({OutOfStock: [called("prune")]}, "called prune: another task has that name"),
    ({OutOfStock: [called("before")]}, "before is in renamed_handlers"),
    ({OutOfStock: [wait]}, "wait must be a plain function"),
    ({OutOfStock: [count]}, "count must be a plain function"),
    ({OutOfStock: [count_later]}, "count_later must be a plain function"),
]


def started(events: dict[type[Event], list[Any]], **renamed: str) -> object:
    """Start the project with these handlers of events, some of which were renamed."""
    changed = replace(
        project,
        bus=MessageBus(project.bus.commands, events),
        renamed_handlers=renamed or {"before": "reallocate"},
    )
    return make_app(changed, celeryconfig)


@pytest.mark.parametrize(("events", "problem"), REFUSED, ids=[row[1] for row in REFUSED])
def test_a_project_with_ambiguous_handler_names_is_refused(
    events: dict[type[Event], list[Any]], problem: str
):
    with pytest.raises(ValueError, match=problem):
        started(events)


def test_one_handler_may_handle_several_events():
    handler = called("notify")

    assert started({OutOfStock: [handler], Deallocated: [handler, called("reallocate")]})


@pytest.mark.parametrize("renamed", [{"old": "older", "older": "old"}, {"old": "old"}])
def test_names_that_lead_back_to_each_other_are_refused(renamed: dict[str, str]):
    with pytest.raises(ValueError, match=r"renamed_handlers leads from old to old(er)? and back"):
        started({OutOfStock: [called("notify")]}, **renamed)
