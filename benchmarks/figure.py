"""A figure: a ratio of two things measured in turns on the same machine, and its goal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True)
class Figure:
    """`ratios` has one value per round; the figure is their median. `why` explains a missed goal."""

    key: str
    what: str
    against: str
    goal: float | None  # None: shown without a goal
    at_least: bool  # else at most
    ratios: tuple[float, ...]
    measured: str  # the values of both sides, in their unit
    why: str = ""
    decidable: bool = True  # False: this machine cannot measure it, and `why` says why not

    @property
    def value(self) -> float:
        """Return the median of the rounds."""
        return median(self.ratios)

    @property
    def met(self) -> bool:
        """Return whether the goal, if any, is reached."""
        if self.goal is None:
            return True
        return self.value >= self.goal if self.at_least else self.value <= self.goal

    @property
    def goal_text(self) -> str:
        """Return the goal as shown in the table."""
        return "" if self.goal is None else f"{'≥' if self.at_least else '≤'} {self.goal:g} ×"

    @property
    def verdict(self) -> str:
        """Return the outcome in a word."""
        if self.goal is None:
            return "shown"
        return "met" if self.met else "missed" if self.decidable else "undecided"

    @property
    def spread(self) -> str:
        """Return the lowest and the highest round."""
        return f"{min(self.ratios):.2f} to {max(self.ratios):.2f}"


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, ...]:
    """Divide round by round: a disturbance of the machine affects both sides of a round."""
    return tuple(mine / other for mine, other in zip(ours, theirs, strict=True))


def per_second(ours: Sequence[float], theirs: Sequence[float], unit: str) -> str:
    """Return two rates as shown in the table."""
    return f"{median(ours):,.0f} : {median(theirs):,.0f} {unit}/s"


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value below which `share` (0 to 1) of the values lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]
