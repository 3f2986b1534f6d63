"""What a fault is, and the table of all of them."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass

from tests.chaos.traffic import Traffic
from tests.chaos.world import World

#: Seconds that an outage lasts; longer than a command is tried, a mail is retried, a relay waits.
OUTAGE_S = 2.5

Run = Callable[[World, Traffic, random.Random], None]


@dataclass(frozen=True)
class Fault:
    """Something that happens."""

    name: str
    what: str
    run: Run
    forgets: bool = False  # the broker loses messages by it
    bends_time: bool = False  # a worker's clock is wrong, so it misjudges `expires`
    needs: str = ""  # what a world must have for it

    @property
    def breaks_redis(self) -> bool:
        """Tell whether stock Celery beside us may lose or repeat messages by itself."""
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
    """Let a fault last; the traffic goes on meanwhile."""
    time.sleep(seconds)
