"""Runs processes one step at a time; who goes on, and what breaks, is for the choices to say.

A process is a greenlet. Whatever it does beyond its own memory is a step: it stops before the step until the
scheduler lets it go on, and the step may fail, or the process may die, before or after the effect.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NoReturn, TypeVar

from greenlet import getcurrent, greenlet

from tests.simulation.choices import Choices
from tests.simulation.clock import Clock

T = TypeVar("T")


class Crash(BaseException):
    """The process is killed: nothing that it would still do has an effect."""


class Broken(AssertionError):
    """An invariant does not hold, or nothing can go on."""


class Fault(StrEnum):
    """What may happen at a step."""

    NONE = "goes well"
    CRASH_BEFORE = "is killed before"
    CRASH_AFTER = "is killed after"
    ERROR_BEFORE = "fails"
    ERROR_AFTER = "is done and seems to fail"
    SLOW_CRASH = "is killed, its session stays for a while"


@dataclass(frozen=True)
class Odds:
    """How wild a schedule is."""

    go_on: float = 0.7  # that the process that ran last goes on
    slow: float = 0.01  # that time passes although somebody could go on
    fault: float = 0.01  # of a step
    faults: int = 2  # at most so many
    kinds: tuple[Fault, ...] = tuple(Fault)  # of those, only these
    focus: str = ""  # steps with this word fail with another probability,
    focused: float = 0.0  # which is this one
    hold: float = 0.0  # that whoever has read something, or is about to commit, lets others commit first,
    holds: tuple[int, ...] = (1, 2, 4, 8)  # so many times


@dataclass
class Process:
    """One simulated process."""

    name: str
    run: Callable[[], object]
    scheduler: Scheduler
    at: str = "starts"  # the step that it stands before
    wakes_at: float | None = None
    ready: Callable[[], bool] | None = None
    blocked_on: Any = None  # the connection whose answer has not come
    held_until: int = 0  # so many commits were made, if others can go on
    dead: bool = False
    done: bool = False
    background: bool = False  # it never ends by itself
    faults: int = 0  # how many have hit it
    connections: list[Any] = field(default_factory=list)
    on_crash: list[Callable[[], object]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Make the greenlet."""
        self.greenlet = greenlet(self._main, parent=self.scheduler.main)
        self.greenlet.process = self  # type: ignore[attr-defined]  # greenlets take attributes

    def _main(self) -> None:
        try:
            self.run()
        except Crash:
            pass
        except Exception as error:  # noqa: BLE001  raised in the scheduler, where the story is
            self.scheduler.failure = self.scheduler.failure or error
        self.done = True

    def pause(self) -> None:
        """Stop until it is chosen; raise Crash if it was killed meanwhile."""
        if self.dead:
            raise Crash
        self.scheduler.main.switch()
        if self.dead:
            raise Crash


class Scheduler:
    """Chooses who goes on until all that must end has ended."""

    def __init__(self, choices: Choices, odds: Odds, clock: Clock) -> None:
        self.main = getcurrent()
        self.choices, self.odds, self.clock = choices, odds, clock
        self.processes: list[Process] = []
        self.last: Process | None = None
        self.story: list[tuple[float, str, str]] = []
        self.steps = 0
        self.commits = 0
        self.faults_left = odds.faults
        self.calm = False  # nothing breaks any more
        self.failure: BaseException | None = None
        self.changed = True  # something that an invariant may speak of
        self.check: Callable[[], object] = lambda: None
        self.has_answer: Callable[[Any], bool] = lambda _connection: True
        self.abandon: Callable[[Process, bool], object] = lambda _process, _slowly: None
        self.cancel: Callable[[Any], object] = lambda _connection: None

    # For processes

    def start(self, name: str, run: Callable[[], object], *, background: bool = False) -> Process:
        """Start a process."""
        process = Process(name, run, self, background=background)
        self.processes.append(process)
        return process

    def tell(self, text: str, who: str | None = None) -> None:
        """Add a line to the story."""
        process = current()
        self.story.append((self.clock.at, who or (process.name if process else "·"), text))

    def fault(self, kinds: tuple[Fault, ...], name: str = "") -> Fault:
        """Choose what happens at this step."""
        odds = self.odds
        kinds = tuple(kind for kind in kinds if kind in odds.kinds)
        if self.calm or self.faults_left <= 0 or not kinds:
            return Fault.NONE
        likely = odds.focused if odds.focus and odds.focus in name else odds.fault
        fault = self.choices.pick((Fault.NONE, *kinds), 1 - likely)
        if fault is not Fault.NONE:
            self.faults_left -= 1
        return fault

    def hold(self, found_nothing: bool = False) -> None:
        """Have the running process stand still while others commit, where the schedule says so.

        Twice as probable where it has looked for something and found nothing.
        """
        process = current()
        if process is None or self.calm or not self.odds.hold:
            return
        likely = min(0.8, 2 * self.odds.hold) if found_nothing else self.odds.hold
        commits = self.choices.pick((0, *self.odds.holds), 1 - likely)
        process.held_until = self.commits + commits if commits else 0

    def die(self, process: Process, *, slowly: bool = False) -> None:
        """Kill the process that runs."""
        self.kill(process, slowly=slowly)
        raise Crash

    def kill(self, process: Process, *, slowly: bool = False) -> None:
        """Kill a process."""
        if process.dead:
            return
        process.dead = True
        self.changed = True
        self.abandon(process, slowly)
        for hook in process.on_crash:
            hook()

    def wait_until(self, ready: Callable[[], bool], at: str, timeout_s: float | None = None) -> bool:
        """Have the running process wait for a condition; False when the time was up."""
        process = current()
        if process is None:
            return ready()
        process.at, process.ready = at, ready
        process.wakes_at = None if timeout_s is None else self.clock.at + timeout_s
        process.pause()
        process.ready = process.wakes_at = None
        return ready()

    def require_alive(self) -> None:
        """Raise Crash where the process that runs was killed, and code around it has caught that."""
        process = current()
        if process is not None and process.dead:
            raise Crash

    def sleep(self, seconds: float) -> None:
        """Have the running process sleep."""
        self.wait_until(lambda: False, "sleeps", max(seconds, 0.001))

    def break_off(self, text: str) -> NoReturn:
        """End the schedule from within a process, whatever the code around would make of an exception."""
        self.end_with(Broken(text))

    def end_with(self, failure: Broken) -> NoReturn:
        """End the schedule with this failure."""
        self.failure = failure
        process = current()
        if process is not None:
            process.dead = True
        raise Crash

    # The loop

    def run(self, limit: int) -> None:
        """Let processes go on until those in the foreground have ended, or `limit` steps were made."""
        while any(not p.done for p in self.processes if not p.background):
            if self.steps >= limit:
                raise Broken(f"not at its end after {limit} steps")
            self.step()

    def step(self) -> None:
        """Let one process make one step, and check what must hold."""
        process = self._chosen()
        self.steps += 1
        self.clock.at += 0.001
        process.greenlet.switch()
        self.last = process
        if process.done and process in self.processes:
            self.processes.remove(process)
        if self.failure is not None:
            raise self.failure
        if self.changed:
            self.changed = False
            self.check()

    def _chosen(self) -> Process:
        ready = [process for process in self.processes if self._is_ready(process)]
        ready = [process for process in ready if process.held_until <= self.commits] or ready
        sleeping = sorted(
            (p for p in self.processes if p.wakes_at is not None and p not in ready),
            key=lambda p: p.wakes_at or 0.0,
        )
        if self.last in ready:
            ready.remove(self.last)
            ready.insert(0, self.last)
        if not ready and not sleeping:
            waiting = ", ".join(f"{p.name} {p.at}" for p in self.processes)
            raise Broken(f"nobody can go on: {waiting}")
        # Everybody else may be slow.
        if not ready or (
            self.odds.slow and sleeping and self.choices.pick((False, True), 1 - self.odds.slow)
        ):
            process = sleeping[0]
        else:
            process = self.choices.pick(ready, self.odds.go_on if self.last in ready else 1 / len(ready))
        if process.wakes_at is not None and process not in ready:
            self.clock.at = max(self.clock.at, process.wakes_at)
        return process

    def _is_ready(self, process: Process) -> bool:
        if process.dead:  # killed by another one: it ends
            return True
        if process.wakes_at is not None and process.wakes_at <= self.clock.at:
            return True
        if process.blocked_on is not None:
            return self.has_answer(process.blocked_on)
        return process.ready() if process.ready is not None else process.wakes_at is None


def current() -> Process | None:
    """Return the process that runs; None outside of a schedule."""
    process: Process | None = getattr(getcurrent(), "process", None)
    return process


def step(
    name: str,
    do: Callable[[], T],
    *faults: Fault,
    error: Callable[[], BaseException] = lambda: OSError("Connection reset by peer"),
    lose: Callable[[], object] = lambda: None,
    changes: bool = True,
) -> T:
    """Make one step of the running process: wait for its turn, then do it, unless a fault is chosen.

    `error` makes what a failure raises, `lose` ends the connection that failed.
    """
    process = current()
    if process is None:
        return do()
    scheduler = process.scheduler
    process.at = name
    process.pause()
    fault = scheduler.fault(faults, name)
    scheduler.tell(name if fault is Fault.NONE else f"{name}: {fault}")
    process.faults += fault is not Fault.NONE
    if fault is Fault.CRASH_BEFORE:
        scheduler.die(process)
    if fault is Fault.SLOW_CRASH:
        scheduler.die(process, slowly=True)
    if fault is Fault.ERROR_BEFORE:
        lose()
        raise error()
    result = do()
    scheduler.changed = scheduler.changed or changes
    if fault is Fault.CRASH_AFTER:
        scheduler.die(process)
    if fault is Fault.ERROR_AFTER:
        lose()
        raise error()
    return result
