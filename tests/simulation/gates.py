"""When a handler with options may begin: what its breaker, its places and its rate promise."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from messaging.options import HandlerOptions, Rate
from messaging.postgres.limits import EARLY_S
from tests.simulation.database import Database
from tests.simulation.scheduler import Process

BREAKER = "SELECT extract(epoch FROM until)::float FROM breakers WHERE handler = %(handler)s"


@dataclass
class Begun:
    """An attempt that is in its handler."""

    process: Process
    faults: int  # that had hit its process by then; a later one may end its session
    trial_of: float | None  # until when the breaker was open, if it may only be a trial

    @property
    def has_its_place(self) -> bool:
        """Tell whether its transaction is open for sure."""
        return not self.process.dead and self.process.faults == self.faults


@dataclass
class Gatekeeper:
    """Watches the handler whose options a schedule has set."""

    database: Database
    handler: str
    options: HandlerOptions
    running: dict[str, Begun] = field(default_factory=dict)  # by process
    taken: list[float] = field(default_factory=list)  # when the messages were taken in which it has begun
    until: float | None = None  # when its breaker may be tried again, as far as it is not closed
    seen_at: float = 0.0  # when that was seen first

    def look(self, at: float) -> None:
        """Read what is committed of its breaker."""
        if self.options.breaker is None:
            return
        rows = self.database.ask(BREAKER, {"handler": self.handler})
        until = rows[0][0] if rows else None
        if until != self.until:
            self.until, self.seen_at = until, at

    def begins(self, process: Process, at: float, taken_at: float) -> Iterator[str]:
        """Note that it begins, in a message that was taken at this time; return what is wrong with that."""
        trial_of = self.until if self.seen_at < taken_at else None  # it was like this when it was claimed
        if trial_of is not None and trial_of > at:
            yield f"{self.handler} begins, and its breaker is open for {trial_of - at:.3f} s more"
        others = [one for one in self.running.values() if one.has_its_place and one.process is not process]
        breaker, places, rate = self.options.breaker, self.options.max_concurrent, self.options.rate
        if breaker is not None and trial_of is not None:
            trials = 1 + sum(one.trial_of == trial_of for one in others)
            if trials > (breaker.trials or 1):
                yield f"{self.handler} is tried {trials} times at once"
        if places is not None and len(others) >= places:
            yield f"{self.handler} runs {len(others) + 1} times at once"
        self.taken.append(taken_at)
        every_s = Rate.parse(rate).every_s if rate is not None else 0.0
        # Each has taken its time after its message; a worker may then stand still before it begins.
        for count, first_at in enumerate(sorted(self.taken, reverse=True)):
            if count * every_s > at - first_at + EARLY_S:
                yield f"{self.handler} has begun {count + 1} times in at most {at - first_at:.3f} s"
                break
        self.running[process.name] = Begun(process, process.faults, trial_of)

    def is_trial(self, process: Process) -> bool:
        """Tell whether a process runs it while its breaker can only be half-open."""
        begun = self.running.get(process.name)
        return begun is not None and begun.trial_of is not None and begun.trial_of == self.until

    def ends(self, process: Process) -> None:
        """Note that it has ended, well or not."""
        self.running.pop(process.name, None)

    def left_open(self) -> bool:
        """Tell whether its breaker is not closed, now that all of its deliveries are done."""
        return self.until is not None
