"""Keep a set of programs running: restart them with a back-off, stop them in order at the end."""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Protocol

_log = logging.getLogger(__name__)

FIRST_DELAY = 0.5  # seconds
LONGEST_DELAY = 30.0  # seconds
#: Seconds after which a program counts as started: its next failure begins with the first delay again.
STEADY_AFTER = 60.0
_LOOK_EVERY = 0.2  # seconds


class Program(Protocol):
    """Anything that can be kept running: a `Child` or a `Server`."""

    @property
    def running(self) -> bool:
        """Tell whether it runs."""

    def start(self) -> object:
        """Start or restart it."""

    def stop(self) -> None:
        """Stop it."""


@dataclass
class Kept:
    """One program and its failures."""

    name: str
    program: Program
    #: False while paused: the program is not restarted.
    wanted: bool = True
    failures: int = 0
    started_at: float = field(default_factory=time.monotonic)
    retry_at: float | None = None

    def lost(self, now: float) -> float:
        """Record a death and return the seconds to wait before the restart."""
        if now - self.started_at > STEADY_AFTER:
            self.failures = 0
        delay = min(LONGEST_DELAY, FIRST_DELAY * 2.0**self.failures)
        self.failures += 1
        self.retry_at = now + delay
        return delay


class Supervisor:
    """Owns programs by name; after `watch`, a thread restarts those that died."""

    def __init__(self, report: Callable[[str], object] = _log.warning) -> None:
        """`report` is called with a line for each death and restart."""
        self._report = report
        self._kept: dict[str, Kept] = {}
        self._lock = threading.RLock()
        self._starting: Program | None = None  # by the watcher
        self._stopped = threading.Event()
        self._watcher: threading.Thread | None = None

    def say(self, line: str) -> None:
        """Report a line, if that is possible: a full disk must not end the watch, nor what it restarted."""
        with suppress(OSError, ValueError):
            self._report(line)

    def start(self, name: str, program: Program) -> None:
        """Start the program and own it from now on; the caller handles a failing start."""
        with self._lock:
            self._kept[name] = Kept(name, program)
            program.start()

    def plan(self, name: str, program: Program) -> None:
        """Own the program, but leave it down until `resume`."""
        with self._lock:
            self._kept[name] = Kept(name, program, wanted=False)

    def watch(self) -> None:
        """Start watching; until then the caller has to notice a death."""
        self._watcher = threading.Thread(target=self._look_after, name="supervisor", daemon=True)
        self._watcher.start()

    def pause(self, name: str) -> None:
        """Stop one program and do not start it again until `resume`."""
        with self._lock:
            self._kept[name].wanted = False
            self._kept[name].program.stop()

    def resume(self, name: str) -> None:
        """Start a paused program again."""
        with self._lock:
            kept = self._kept[name] = Kept(name, self._kept[name].program)
            kept.program.start()

    def stop_together(self, names: Iterable[str]) -> None:
        """Stop these at the same time and do not restart them; names that were never started are ignored."""
        with self._undisturbed():
            chosen = [self._kept[name] for name in names if name in self._kept]
            for kept in chosen:
                kept.wanted = False
            with ThreadPoolExecutor(max_workers=max(1, len(chosen))) as pool:
                list(pool.map(lambda kept: kept.program.stop(), chosen))

    def stop(self) -> None:
        """Stop every program in reverse order of their start; return when all are gone."""
        # The watcher ends last: the kernel treats its end as the death of the parent of what it started.
        with self._undisturbed():
            for kept in reversed(self._kept.values()):
                kept.wanted = False
                kept.program.stop()
        self._stopped.set()
        if self._watcher is not None:
            self._watcher.join()

    @contextmanager
    def _undisturbed(self) -> Iterator[None]:
        """Hold the lock; a restart that takes long is given up, such as that of a server that recovers."""
        while not self._lock.acquire(timeout=_LOOK_EVERY):
            starting = self._starting
            if starting is not None:
                starting.stop()
        try:
            yield
        finally:
            self._lock.release()

    def _look_after(self) -> None:
        while not self._stopped.wait(_LOOK_EVERY):
            with self._lock:
                for kept in self._kept.values():
                    self._check(kept)

    def _check(self, kept: Kept) -> None:
        if not kept.wanted or kept.program.running:
            return
        now = time.monotonic()
        if kept.retry_at is None:
            self.say(f"{kept.name} died; restarting it in {kept.lost(now):g} s")
        elif now >= kept.retry_at:
            self._start_again(kept)

    def _start_again(self, kept: Kept) -> None:
        kept.started_at, kept.retry_at = time.monotonic(), None
        self._starting = kept.program
        try:
            kept.program.start()
        except Exception as error:  # noqa: BLE001 - one program that cannot start must not end the watch
            delay = kept.lost(time.monotonic())
            self.say(f"{kept.name} did not start ({error}); next try in {delay:g} s")
        else:
            self.say(f"{kept.name} runs again")
        finally:
            self._starting = None
