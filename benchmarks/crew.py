"""The worker processes of one peer: started once, paused while others have their turn."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import psutil

from benchmarks.peers.peer import Line, Peer
from benchmarks.servers import Servers
from local.processes.child import Child
from local.waiting import NotInTimeError, eventually

START_TIMEOUT = 20.0  # seconds
#: taskiq takes a line now and then while it starts and never runs it.
START_TRIES = 3
WARM_UP = 20  # lines


@dataclass
class Crew:
    """`peer`'s workers; between `pause` and `resume` they use no CPU."""

    peer: Peer
    servers: Servers
    processes: int
    children: list[Child] = field(default_factory=list)
    rate: float = 0.0  # lines per second in its last turn

    def start(self) -> None:
        """Start the workers and have each process a line."""
        environment = {**os.environ, "PYTHONUNBUFFERED": "1", **self.peer.env}
        for number, arguments in enumerate(self.peer.workers(self.processes)):
            name = f"{self.peer.name}-{number}"
            log = self.servers.folder / f"{name}.log"
            child = Child(name, [sys.executable, *arguments], log, environment, stop_timeout=3.0)
            child.start()
            self.children.append(child)

    def warm_up(self) -> None:
        """Wait until the workers have allocated some lines."""
        for _ in range(START_TRIES - 1):
            with suppress(NotInTimeError):
                return self._first_lines()
        return self._first_lines()

    def _first_lines(self) -> None:
        goal = self.done() + WARM_UP
        # Other lines each time: one that is already allocated does not count.
        name = f"{self.peer.name}-warm-{time.monotonic_ns()}"
        self.peer.publish([Line(f"{name}-{n}", f"SKU-{n:04}") for n in range(WARM_UP)])
        eventually(
            lambda: self.done() >= goal or self._check(),
            START_TIMEOUT,
            f"the first lines of {self.peer.shown}",
        )

    def done(self) -> int:
        """Return how many lines the workers have allocated so far."""
        return self.servers.number(
            f"SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM {self.peer.counter}"  # noqa: S608
        )

    def pause(self) -> None:
        """Pause every process."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Resume every process."""
        self._signal(signal.SIGCONT)

    def stop(self) -> None:
        """Kill the workers at once: the messages that they hold are no longer needed."""
        for child in self.children:
            child.kill()

    def processes_alive(self) -> list[psutil.Process]:
        """Return every process of the workers, including pool children."""
        return family(self.children)

    def cpu_s(self) -> float:
        """Return the CPU seconds of the workers."""
        return cpu_s(self.processes_alive())

    def _check(self) -> bool:
        for child in self.children:
            if not child.running:
                raise child.ended_early()
        return False

    def _signal(self, number: signal.Signals) -> None:
        for process in self.processes_alive():
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)


def family(children: Sequence[Child]) -> list[psutil.Process]:
    """Return the processes of those that run, including pool children."""
    parents = [psutil.Process(child.pid) for child in children if child.running]
    return [*parents, *(each for parent in parents for each in parent.children(recursive=True))]


def unshared_mib(processes: list[psutil.Process]) -> float:
    """Return the memory that these processes share with no other, in MiB."""
    total = 0
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            total += process.memory_full_info().uss
    return total / 2**20


def cpu_s(processes: list[psutil.Process]) -> float:
    """Return the CPU seconds of these processes, in user and kernel mode."""
    total = 0.0
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
    return total


@contextmanager
def crews(peers: list[Peer], servers: Servers, processes: int) -> Iterator[list[Crew]]:
    """Start and pause the workers of every peer; stop them all at the end."""
    started: list[Crew] = []
    try:
        for peer in peers:
            peer.prepare()
            crew = Crew(peer, servers, processes)
            started.append(crew)
            crew.start()
            crew.warm_up()
            crew.pause()
        yield started
    finally:
        for crew in started:
            crew.stop()
