"""A bug that is planted is found by what it does, not by a mistake in the way it was planted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from messaging.postgres import outbox
from messaging.postgres.announcements import Announcements
from messaging.postgres.inbox import Inbox
from messaging.worker.received import Received
from tests.simulation import mutations
from tests.simulation.planting import put, without
from tests.simulation.redis import mutations as transport_mutations
from tests.simulation.run import WronglyPlanted, measured
from tests.simulation.server import simulated_world
from tests.simulation.world import World

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    """A world on a server of its own."""
    with simulated_world() as world:
        yield world


@contextmanager
def take_of_an_older_release(_self: Announcements, _limit: int) -> Iterator[list[Any]]:
    yield []


@pytest.mark.parametrize(
    ("target", "name", "value"),
    [
        (Announcements, "take", take_of_an_older_release),
        (Inbox, "refuse", lambda _self, _job: None),
        (Inbox, "refuse", lambda _self, _job, _error, _more: None),
        (Received, "of", classmethod(lambda _cls, _task: None)),
    ],
)
def test_a_replacement_takes_whatever_the_original_takes(target: Any, name: str, value: Any):
    """Else the bug would be found by a TypeError."""
    before = getattr(target, name)

    with ExitStack() as stack, pytest.raises(TypeError, match="takes other arguments"):
        put(stack, target, name, value)

    assert getattr(target, name) == before


@pytest.mark.parametrize("value", [lambda *_args: None, lambda _self, job, error, more=1: (job, error, more)])
def test_a_replacement_may_take_more(value: Any):
    with ExitStack() as stack:
        put(stack, Inbox, "refuse", value)

        Inbox.refuse(None, None, None)  # type: ignore[arg-type]  # it looks at nothing


def unknown_name(stack: ExitStack) -> None:
    put(stack, Inbox, "refuse", lambda _self, _job, _error: no_such_name)  # type: ignore[name-defined]  # noqa: F821


def unknown_column(stack: ExitStack) -> None:
    without(stack, outbox, "INSERT_DELIVERY", "handler, due_at", instead="handler, due_when")


def other_type(stack: ExitStack) -> None:
    put(stack, Inbox, "refuse", lambda _self, _job, _error: None)  # its caller wants an Answer


@pytest.mark.parametrize("plant", [unknown_name, unknown_column, other_type])
def test_a_mistake_of_a_planted_bug_is_no_finding(world: World, plant: Callable[[ExitStack], None]):
    with ExitStack() as stack:
        plant(stack)
        with pytest.raises(WronglyPlanted):
            measured(world, range(1, 60))


def test_every_bug_can_be_planted(world: World):
    """The code that it changes is still there, and takes the same arguments."""
    for plant in mutations.MUTATIONS.values():
        with plant(world):
            pass
    for plant_in_transport in transport_mutations.MUTATIONS.values():
        with plant_in_transport(world):  # type: ignore[arg-type]  # they look at no world
            pass
