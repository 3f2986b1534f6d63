"""A short run: app, relay and broker are killed; the long one is `python -m tests.transactional_send`."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests.transactional_send.rounds import play
from tests.transactional_send.world import World

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

ROUNDS = 4


def test_each_committed_order_has_one_answer_and_no_other_has_any(server_folder: Path):
    seed = random.randrange(10**6)
    with World(server_folder / "transactional-send", "redis") as world:
        for number in range(ROUNDS):
            one = play(world, number, seed, kill_broker=number == 1)

            assert not one.findings, f"seed {seed}: {one.findings}"
            assert one.outcomes
