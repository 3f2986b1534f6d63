"""Small cases whose schedules are all played: two messages, and what may break on the way."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

from allocation.domain.commands import Allocate, ChangeBatchQuantity, CreateBatch
from messaging.messages import Command
from tests.simulation.choices import Enumerated
from tests.simulation.plan import Order, Plan
from tests.simulation.scheduler import Fault, Odds
from tests.simulation.world import Outcome, World


@dataclass(frozen=True)
class Case:
    """What comes before (told one after the other), and the commands that wait."""

    before: tuple[Command, ...]
    commands: tuple[Command, ...]  # the same one twice: two copies of its message
    groups: tuple[int, ...] = ()

    def plan(self, odds: Odds) -> Plan:
        """Return the plan."""
        prepared = tuple(Order(f"before{number}", (one,)) for number, one in enumerate(self.before))
        waiting = tuple(Order(f"key{self.commands.index(one)}", (one,)) for one in self.commands)
        return Plan({}, odds, waiting=waiting, prepared=prepared, groups=self.groups, operators=0, relays=1)


STOCK = CreateBatch("b1", "LAMP", 5)
ORDER = Allocate("o1", "LAMP", 3)
CASES = {
    "two copies of an order": Case((STOCK,), (ORDER, ORDER)),
    "two copies of an order that cannot be allocated": Case((CreateBatch("b1", "LAMP", 2),), (ORDER, ORDER)),
    "two copies of a new product": Case((), (STOCK, STOCK)),
    "two copies of an order of an unknown product": Case((), (ORDER, ORDER)),
    "two copies of a correction": Case((STOCK, ORDER), (ChangeBatchQuantity("b1", 1),) * 2),
    "a group of two orders for the same product": Case(
        (STOCK,), (ORDER, Allocate("o2", "LAMP", 3)), groups=(2, 2)
    ),
    "a group of an order and one of an unknown product": Case(
        (STOCK,), (ORDER, Allocate("o2", "RUG", 1)), groups=(2, 0)
    ),
}
#: Which faults, and how many choices that are not calm: one or two of any kind, or two switches or deaths.
ALL = tuple(fault for fault in Fault if fault is not Fault.NONE)
LEVELS = {
    "one fault or switch": (ALL, 1),
    "two deaths or switches": ((Fault.CRASH_BEFORE,), 2),
    "two faults or switches": (ALL, 2),
}


@dataclass(frozen=True)
class Played:
    """What came of the schedules of a case."""

    schedules: int
    seconds: float
    is_all: bool
    failed: Outcome | None = None

    def __str__(self) -> str:
        extent = "all" if self.is_all else "the first"
        return f"{extent} {self.schedules:,} schedules in {self.seconds:.0f} s"


def play_all(world: World, levels: Iterator[str], seconds: float | None) -> Iterator[tuple[str, Played]]:
    """Play the schedules of every case, in so many seconds for each level."""
    for words in levels:
        until = None if seconds is None else time.monotonic() + seconds
        for number, (name, case) in enumerate(CASES.items()):
            left = None if until is None else (until - time.monotonic()) / (len(CASES) - number)
            yield f"{name}, {words}", play_case(world, case, *LEVELS[words], left)


def play_case(
    world: World, case: Case, kinds: tuple[Fault, ...], budget: int, seconds: float | None = None
) -> Played:
    """Play the schedules of one case until one fails or the time is up."""
    plan = case.plan(Odds(slow=0.0, faults=budget, kinds=kinds))
    choices, played, begun = Enumerated(budget), 0, time.monotonic()
    while True:
        outcome = world.play(plan, choices, 1)
        played, took = played + 1, time.monotonic() - begun
        if outcome.failure is not None:
            return Played(played, took, False, outcome)
        if not choices.advance():
            return Played(played, took, True)
        if seconds is not None and took > seconds:
            return Played(played, took, False)
