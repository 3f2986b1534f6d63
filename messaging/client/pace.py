"""How fast a relay goes: sizes, waits and the pause while something is away. All times are seconds."""

from __future__ import annotations

import math
import random
import time
from dataclasses import dataclass


@dataclass(frozen=True)
class Pace:
    """What can be set about a relay; all are positive.

    Attributes:
        size: commands in a message; no more than the backend's `ALLOCATION_BULK_MAX`.
        in_flight: messages without an answer, of all relays; the rest waits in the table.
        interval_s: seconds between looks at the table while there is nothing to do.
        lease_s: seconds after which what a relay took and did not confirm is sent by another.
        answer_after_s: seconds after which a command without an answer is sent again; doubles each time.
        answer_after_max_s: the longest of these waits.
        pause_max_s: the longest pause in seconds while the broker, the results or the database is away.
        retention_s: seconds for which handled commands are kept, and their keys refused to others.
    """

    size: int = 100
    in_flight: int = 50
    interval_s: float = 0.2
    lease_s: float = 10
    answer_after_s: float = 60
    answer_after_max_s: float = 3600
    pause_max_s: float = 30
    retention_s: float = 7 * 86400

    def __post_init__(self) -> None:
        """Refuse what would send without a pause, or never."""
        for name, value in vars(self).items():
            if not 0 < value < math.inf:
                raise ValueError(f"{name} must be a positive number, not {value!r}")

    def resend_after_s(self, attempts: int) -> float:
        """Return how long an answer may take, given how often the command was sent."""
        return doubled(self.answer_after_s, attempts - 1, self.answer_after_max_s)

    def retry_after_s(self, attempts: int) -> float:
        """Return the wait before a command or the handling of its answer is tried again."""
        return jittered(doubled(0.5, attempts, self.answer_after_max_s))


class Pause:
    """Longer with each failure, drawn at random so that relays do not come back all at once."""

    def __init__(self, longest_s: float) -> None:
        self._longest_s = longest_s
        self._failures = 0
        self._until = 0.0

    @property
    def over(self) -> bool:
        """Tell whether it may be tried."""
        return time.monotonic() >= self._until

    def failed(self) -> bool:
        """Pause; True at the first failure in a row."""
        self._failures += 1
        self._until = time.monotonic() + jittered(doubled(0.25, self._failures, self._longest_s))
        return self._failures == 1

    def succeeded(self) -> bool:
        """Pause no more; True after a failure."""
        recovered = self._failures > 0
        self._failures = 0
        return recovered


def doubled(first: float, times: int, longest: float) -> float:
    """Return `first`, doubled so many times, `longest` at most."""
    return min(longest, first * 2.0 ** min(max(times, 0), 30))


def jittered(wait: float) -> float:
    """Return something between half of a wait and all of it."""
    return wait * random.uniform(0.5, 1)  # noqa: S311  jitter, not a secret
