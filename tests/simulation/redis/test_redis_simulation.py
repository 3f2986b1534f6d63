"""The Redis transport loses no message and gives none to two workers, whatever the order of its commands."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import count

import pytest

from tests.simulation.redis.mutations import MUTATIONS
from tests.simulation.redis.world import RedisWorld, redis_world
from tests.simulation.run import A_MINUTE, Schedule, hunt, measured, shrunk, story

#: Seconds of random schedules.
SECONDS = 15.0

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def world() -> Iterator[RedisWorld]:
    """A world for all schedules of this file, on a server of its own."""
    with redis_world() as world:
        yield world


def test_whatever_the_order_of_commands_no_message_is_lost(world: RedisWorld):
    """Fresh seeds each time; the line that is printed replays what was found."""
    first = random.SystemRandom().randrange(10**9)

    result = hunt(world, count(first), SECONDS)

    print(f"seeds from {first}: {result}")
    if result.found and result.outcome:
        found, outcome = shrunk(world, result.found, result.outcome)
        pytest.fail(f"{story(outcome)}\n\npython -m tests.simulation --redis {found}")


@pytest.mark.parametrize("seed", range(3, 9))
def test_a_schedule_of_the_transport_is_replayed_from_its_seed(world: RedisWorld, seed: int):
    """The same commands, told in the same words."""
    first = Schedule(seed).play(world)
    again = Schedule(seed).play(world)

    assert story(again) == story(first)


@pytest.mark.long
@pytest.mark.parametrize("words", MUTATIONS)
def test_a_bug_planted_in_the_transport_is_found(world: RedisWorld, words: str):
    """The measure of this world: any first seed will do."""
    first = random.SystemRandom().randrange(10**9)

    with MUTATIONS[words](world):
        result = measured(world, range(first, first + A_MINUTE))

    print(f"{words}: {result}, --seed {result.found and result.found.seed}")
    assert result.found, f"not found in {result}"
