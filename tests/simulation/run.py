"""Plays many schedules, makes a failing one smaller, and tells it as a story."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

from tests.simulation.choices import Choices, Replayed, Seeded, line
from tests.simulation.clock import EPOCH
from tests.simulation.mistakes import Mistake
from tests.simulation.scheduler import Broken
from tests.simulation.world import Outcome

#: As many as one free core plays in a minute: a planted bug has to be found by then.
A_MINUTE = 900

IDS = re.compile(r"[0-9a-f]{8}-[0-9a-f-]{27}")


class World(Protocol):
    """One of the two worlds."""

    def plan_of(self, seed: int) -> Any:
        """Return the plan that a seed makes."""

    def play(self, plan: Any, choices: Choices, seed: int) -> Outcome:
        """Play a plan."""
        ...


@dataclass(frozen=True)
class Schedule:
    """One schedule; its line replays it."""

    seed: int
    left_out: tuple[int, ...] = ()
    choices: dict[int, int] | None = field(default=None, hash=False)  # None: those of the seed

    def __str__(self) -> str:
        parts = [f"--seed {self.seed}"]
        if self.left_out:
            parts.append(f"--without {','.join(map(str, self.left_out))}")
        if self.choices is not None:
            parts.append(f"--choices {line(self.choices) or '0:0'}")
        return " ".join(parts)

    def play(self, world: World) -> Outcome:
        """Play it."""
        choices: Choices = Seeded(self.seed) if self.choices is None else Replayed(self.choices)
        plan = world.plan_of(self.seed).without(self.left_out)
        return world.play(plan, choices, self.seed)


@dataclass
class Hunt:
    """What a run of many schedules came to."""

    schedules: int = 0
    steps: int = 0
    seconds: float = 0.0
    found: Schedule | None = None
    outcome: Outcome | None = None

    def __str__(self) -> str:
        a_second = self.schedules / self.seconds if self.seconds else 0.0
        return (
            f"{self.schedules:,} schedules, {self.steps:,} steps in {self.seconds:.0f} s:"
            f" {a_second:.1f} schedules a second"
        )


def hunt(world: World, seeds: Iterable[int], seconds: float | None = None) -> Hunt:
    """Play the schedules of these seeds until one fails or the time is up."""
    result, begun = Hunt(), time.monotonic()
    for seed in seeds:
        schedule = Schedule(seed)
        outcome = schedule.play(world)
        result.schedules += 1
        result.steps += outcome.steps
        result.seconds = time.monotonic() - begun
        if outcome.failure is not None:
            result.found, result.outcome = schedule, outcome
            break
        if seconds is not None and result.seconds >= seconds:
            break
    return result


class WronglyPlanted(Exception):
    """A bug that was planted fails by a mistake of its own, which says nothing of the simulation."""


def measured(world: World, seeds: Iterable[int], seconds: float | None = None) -> Hunt:
    """Hunt for a bug that was planted; only a promise that does not hold counts.

    Raises:
        WronglyPlanted: something else was found.
    """
    result = hunt(world, seeds, seconds)
    failure = result.outcome and result.outcome.failure
    if failure is not None and (not isinstance(failure, Broken) or isinstance(failure, Mistake)):
        raise WronglyPlanted(f"{result.found}: {failure!r}") from failure
    return result


def shrunk(
    world: World, found: Schedule, outcome: Outcome, seconds: float = 30.0
) -> tuple[Schedule, Outcome]:
    """Return a smaller schedule that fails in the same way, the smallest that was found in that time."""
    until, kind = time.monotonic() + seconds, kind_of(outcome)

    def fails(schedule: Schedule) -> Outcome | None:
        if time.monotonic() > until:
            return None
        played = schedule.play(world)
        return played if played.failure is not None and kind_of(played) == kind else None

    for number in range(world.plan_of(found.seed).size):
        smaller = Schedule(found.seed, (*found.left_out, number))
        if played := fails(smaller):
            found, outcome = smaller, played
    choices = {position: index for position, index in enumerate(outcome.taken) if index}
    step = len(choices)
    while step:
        positions = sorted(choices)
        for start in range(0, len(positions), step):
            dropped = set(positions[start : start + step])
            fewer = {position: index for position, index in choices.items() if position not in dropped}
            if played := fails(Schedule(found.seed, found.left_out, fewer)):
                found, outcome, choices = Schedule(found.seed, found.left_out, fewer), played, fewer
        step //= 2
    return found, outcome


def kind_of(outcome: Outcome) -> str:
    """Return what went wrong without ids and numbers."""
    return re.sub(r"[\d']+", "", IDS.sub("", str(outcome.failure)))[:40]


def story(outcome: Outcome) -> str:
    """Return a schedule as lines that say who did what."""
    names: dict[str, str] = {}
    lines = [f"{at - EPOCH:9.3f}  {who:16} {_named(text, names)}" for at, who, text in outcome.story]
    if outcome.failure is not None:
        lines.append(f"{'':9}  {'WRONG':16} {_named(str(outcome.failure), names)}")
    return "\n".join(lines)


def _named(text: str, names: dict[str, str]) -> str:
    """Write ids as #1, #2, …, which are easier to follow."""
    whole = IDS.sub(lambda found: names.setdefault(found.group()[-12:], f"#{len(names) + 1}"), text)
    return re.sub(
        r"\b[0-9a-f]{12}\b", lambda found: names.setdefault(found.group(), f"#{len(names) + 1}"), whole
    )
