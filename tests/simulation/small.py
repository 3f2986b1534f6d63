"""Small cases whose schedules are all played: two copies of one command, and what may break on the way."""

from __future__ import annotations

import time
from collections.abc import Iterator

from allocation.domain.commands import Allocate, ChangeBatchQuantity, CreateBatch
from messaging.messages import Command
from tests.simulation.choices import Enumerated
from tests.simulation.plan import Order, Plan
from tests.simulation.scheduler import Fault, Odds
from tests.simulation.world import Outcome, World

#: What comes before (told one after the other), and the command of which two copies arrive.
CASES: dict[str, tuple[tuple[Command, ...], Command]] = {
    "an order": ((CreateBatch("b1", "LAMP", 5),), Allocate("o1", "LAMP", 3)),
    "an order that cannot be allocated": ((CreateBatch("b1", "LAMP", 2),), Allocate("o1", "LAMP", 3)),
    "a new product": ((), CreateBatch("b1", "LAMP", 5)),
    "an order of an unknown product": ((), Allocate("o1", "LAMP", 3)),
    "a correction": (
        (CreateBatch("b1", "LAMP", 5), Allocate("o1", "LAMP", 3)),
        ChangeBatchQuantity("b1", 1),
    ),
}
#: Which faults, and how many choices that are not calm: one of any kind, or two switches or deaths.
ALL = tuple(fault for fault in Fault if fault is not Fault.NONE)
LEVELS = {"one fault or switch": (ALL, 1), "two deaths or switches": ((Fault.CRASH_BEFORE,), 2)}


def play_all(world: World, level: str | None = None) -> Iterator[tuple[str, int, float, Outcome | None]]:
    """Play every schedule of every case; yield the case, how many, the seconds, and one that failed."""
    for name, (before, command) in CASES.items():
        for words, (kinds, budget) in LEVELS.items():
            if level in (None, words):
                yield f"{name}, {words}", *play_case(world, before, command, kinds, budget)


def play_case(
    world: World, before: tuple[Command, ...], command: Command, kinds: tuple[Fault, ...], budget: int
) -> tuple[int, float, Outcome | None]:
    """Play every schedule of one case; return how many, the seconds, and the one that failed."""
    odds = Odds(slow=0.0, faults=1 if budget == 1 else 2, kinds=kinds)
    prepared = tuple(Order(f"before{number}", (one,)) for number, one in enumerate(before))
    plan = Plan({}, odds, copies=Order("key", (command,)), prepared=prepared, operators=0, relays=1)
    choices, played, begun = Enumerated(budget), 0, time.monotonic()
    while True:
        outcome = world.play(plan, choices, 1)
        played += 1
        if outcome.failure is not None:
            return played, time.monotonic() - begun, outcome
        if not choices.advance():
            return played, time.monotonic() - begun, None
