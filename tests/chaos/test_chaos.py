"""A short run of the most useful faults; `make chaos` runs all of them, any number of times."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chaos.faults import FAULTS
from tests.chaos.report import show_round
from tests.chaos.rounds import play
from tests.chaos.world import World

SHORT = (
    "kill_child",
    "kill_worker",
    "kill_at_refusals",
    "redis_killed",
    "redis_flushed",
    "postgres_immediate",
    "deadly_event",
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def world(server_folder: Path) -> Iterator[World]:
    """This file's own workers, beat and servers, since it breaks them."""
    with World(server_folder / "chaos") as world:
        yield world


@pytest.mark.parametrize("name", SHORT)
def test_nothing_is_lost_and_nothing_doubled(world: World, name: str) -> None:
    """One thing breaks during a load, and afterwards the database is right."""
    seed = random.randrange(10**6)

    one = play(world, FAULTS[name], seed)

    show_round(one)
    assert one.good, one.verdict.findings
