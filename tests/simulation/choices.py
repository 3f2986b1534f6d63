"""Where the decisions of a schedule come from: a seed, a recorded list, or the next of all lists."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random
from typing import Protocol, TypeVar

T = TypeVar("T")


class Choices(Protocol):
    """Decides; option 0 is always the calm one: go on, and break nothing."""

    taken: list[int]

    def pick(self, options: Sequence[T], calm: float) -> T:
        """Return one option; the first one with the probability `calm`."""


class Seeded:
    """Random choices, the same for the same seed."""

    def __init__(self, seed: int) -> None:
        self.taken: list[int] = []
        self._random = Random(seed)

    def pick(self, options: Sequence[T], calm: float) -> T:
        """Return the first option with the probability `calm`, else any of the others."""
        index = 0
        if len(options) > 1 and self._random.random() >= calm:
            index = self._random.randrange(1, len(options))
        self.taken.append(index)
        return options[index]


class Replayed:
    """Choices that were recorded, by position; all others are calm."""

    def __init__(self, recorded: Mapping[int, int]) -> None:
        self.taken: list[int] = []
        self._recorded = recorded

    def pick(self, options: Sequence[T], calm: float) -> T:  # noqa: ARG002  as all choices
        """Return the option that was recorded at this position."""
        index = min(self._recorded.get(len(self.taken), 0), len(options) - 1)
        self.taken.append(index)
        return options[index]


class Enumerated:
    """All lists of choices, one after the other, of which at most `budget` are not calm."""

    def __init__(self, budget: int) -> None:
        self.taken: list[int] = []
        self._budget = budget
        self._prefix: list[int] = []
        self._counts: list[int] = []

    def pick(self, options: Sequence[T], calm: float) -> T:  # noqa: ARG002  as all choices
        """Return the option of the list that is under way; beyond its end all are calm."""
        position = len(self.taken)
        index = self._prefix[position] if position < len(self._prefix) else 0
        self.taken.append(index)
        self._counts.append(len(options))
        return options[index]

    def advance(self) -> bool:
        """Go on to the next list; False after the last one."""
        taken, counts = self.taken, self._counts
        self.taken, self._counts = [], []
        for position in range(len(taken) - 1, -1, -1):
            spent = sum(1 for index in taken[:position] if index)
            if taken[position] + 1 < counts[position] and spent < self._budget:
                self._prefix = [*taken[:position], taken[position] + 1]
                return True
        return False


def recorded(text: str) -> dict[int, int]:
    """Read choices as `line` writes them."""
    pairs = (part.split(":") for part in text.split(",") if part)
    return {int(position): int(index) for position, index in pairs}


def line(choices: Mapping[int, int]) -> str:
    """Write the choices that are not calm as `position:option,…`."""
    return ",".join(f"{position}:{index}" for position, index in sorted(choices.items()) if index)
