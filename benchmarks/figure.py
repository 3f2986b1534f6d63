"""A figure: a ratio of two things measured in turns on the same machine, and its goal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median, quantiles


@dataclass(frozen=True)
class Figure:
    """`ratios` has one value per round; the figure is their median. `why` explains a missed goal.

    A goal is met when three quarters of the rounds meet it, missed when three quarters miss it; between the
    two this run does not decide.
    """

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
    def quartiles(self) -> tuple[float, float]:
        """Return the lower and the upper quartile of the rounds."""
        if len(self.ratios) == 1:
            return self.ratios[0], self.ratios[0]
        low, _, high = quantiles(self.ratios, n=4, method="inclusive")
        return low, high

    @property
    def met(self) -> bool:
        """Return whether even the worse quartile of the rounds reaches the goal, if there is one."""
        low, high = self.quartiles
        return self._reaches(low if self.at_least else high)

    def _reaches(self, ratio: float) -> bool:
        if self.goal is None:
            return True
        return ratio >= self.goal if self.at_least else ratio <= self.goal

    @property
    def goal_text(self) -> str:
        """Return the goal as shown in the table."""
        return "" if self.goal is None else f"{'≥' if self.at_least else '≤'} {self.goal:g} ×"

    @property
    def verdict(self) -> str:
        """Return the outcome in a word: missed where not even the better quartile reaches the goal."""
        if self.goal is None:
            return "shown"
        if self.met:
            return "met"
        low, high = self.quartiles
        could_be = self._reaches(high if self.at_least else low)
        return "undecided" if could_be or not self.decidable else "missed"

    @property
    def spread(self) -> str:
        """Return the quartiles as shown in the table."""
        low, high = self.quartiles
        return f"{low:.2f} to {high:.2f}"


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
