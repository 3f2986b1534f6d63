"""One turn of one peer: its queue is filled while its workers are paused, then they empty it."""

from __future__ import annotations

import time
from dataclasses import dataclass

import psutil

from benchmarks import stock
from benchmarks.crew import Crew, cpu_s
from benchmarks.peers.peer import Line
from benchmarks.scale import Scale

WARM = 0.1  # share of the lines that is not timed
LOOK_EVERY = 0.005  # seconds
TURN_TIMEOUT = 300.0  # seconds


@dataclass(frozen=True)
class Turn:
    """A turn's outcome: lines per second, and CPU per line in milliseconds."""

    rate: float
    worker_cpu_ms: float
    server_cpu_ms: float  # PostgreSQL and Redis


def sized_turn(crew: Crew, name: str, scale: Scale, skus: int = stock.SKUS, seed: int = 1) -> Turn:
    """Run a turn of about `scale.turn_s`; a crew's first one only shows how many lines that takes."""
    if not crew.rate:
        take_turn(crew, stock.lines(f"{name}-size", scale.lines, skus, seed))
    return take_turn(crew, stock.lines(name, scale.lines_of(crew.rate), skus, seed))


def take_turn(crew: Crew, lines: list[Line]) -> Turn:
    """Run one turn; the workers are paused before and after."""
    crew.peer.publish(lines)
    servers = _server_processes(crew)
    cpu, server_cpu, start = crew.cpu_s(), cpu_s(servers), crew.done()
    crew.resume()
    warm, warm_at = _wait_for(crew, start + max(1, int(len(lines) * WARM)))
    end, end_at = _wait_for(crew, start + len(lines))
    server_cpu, cpu = cpu_s(_server_processes(crew)) - server_cpu, crew.cpu_s() - cpu
    crew.pause()
    per_line = 1000 / len(lines)
    crew.rate = (end - warm) / (end_at - warm_at)
    return Turn(crew.rate, cpu * per_line, server_cpu * per_line)


def _wait_for(crew: Crew, count: int) -> tuple[int, float]:
    """Wait for at least `count` lines; return the number and the time."""
    deadline = time.monotonic() + TURN_TIMEOUT
    while (done := crew.done()) < count:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{crew.peer.shown} had allocated {done} of {count} lines in time")
        time.sleep(LOOK_EVERY)
    return done, time.monotonic()


def _server_processes(crew: Crew) -> list[psutil.Process]:
    parents = [psutil.Process(crew.servers.postgres.pid), psutil.Process(crew.servers.redis.pid)]
    return [*parents, *(each for parent in parents for each in parent.children(recursive=True))]
