"""The definition of a fault, and the table of all faults."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from tests.chaos.traffic import Traffic
from tests.chaos.world import World

#: Length of an outage in seconds; longer than a command's attempts, a mail's retries and the relay's wait.
OUTAGE_S = 2.5

Run = Callable[[World, Traffic, random.Random], None]


@dataclass(frozen=True)
class Fault:
    """Something that breaks."""

    name: str
    what: str
    run: Run
    forgets: bool = False  # the broker loses messages
    bends_time: bool = False  # a worker's clock is wrong, so it misjudges `expires`
    needs: str = ""  # what a world must have to run it

    @property
    def breaks_redis(self) -> bool:
        """Return whether a stock Celery app next to us may itself lose or repeat messages."""
        return self.needs == "redis"


FAULTS: dict[str, Fault] = {}


def fault(
    what: str, *, forgets: bool = False, bends_time: bool = False, needs: str = ""
) -> Callable[[Run], Run]:
    """Register a fault under its function's name."""

    def register(run: Run) -> Run:
        FAULTS[run.__name__] = Fault(run.__name__, what, run, forgets, bends_time, needs)
        return run

    return register


def last(seconds: float) -> None:
    """Let a fault last for a while; the traffic continues."""
    time.sleep(seconds)
