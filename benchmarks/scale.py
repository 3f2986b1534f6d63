"""The sizes of the measurements."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """Sizes of one run; `QUICK` takes about twenty minutes, `FULL` about an hour, on two quiet cores."""

    rounds: int = 5
    processes: int = 2  # workers of each peer
    lines: int = 300  # a turn has at least so many
    turn_s: float = 1.0  # how long a turn of any peer takes, about
    search_s: float = 0.5  # the same while the best settings are looked for
    search_rounds: int = 3
    latency_s: float = 4.0
    flat_allocations: int = 100_000
    flat_batches: int = 10_000
    flat_commands: int = 300
    relay_pending: int = 20_000
    relay_done: int = 1_000_000
    large_done: int = 300_000  # deliveries
    large_pending: int = 30_000  # deliveries, and as many events to publish
    large_skus: int = 50_000
    large_work: int = 320  # a turn
    large_warm_up: int = 5  # rounds
    memory_before: int = 1_000
    memory_after: int = 6_000

    def lines_of(self, rate: float) -> int:
        """Return the lines of a turn at this rate: an equal time, so that nobody's start weighs more."""
        return max(self.lines, round(rate * self.turn_s))


QUICK = Scale()
FULL = Scale(
    rounds=7,
    lines=600,
    turn_s=2.0,
    search_s=1.0,
    latency_s=8.0,
    flat_allocations=1_000_000,
    flat_commands=2_000,
    relay_pending=100_000,
    relay_done=10_000_000,
    large_done=10_000_000,
    large_pending=1_000_000,
    large_skus=1_000_000,
    large_work=960,
    large_warm_up=15,
    memory_before=5_000,
    memory_after=100_000,
)
#: To test the benchmark itself.
TINY = Scale(
    rounds=1,
    lines=250,  # more than two messages of a hundred
    turn_s=0,
    search_s=0,
    search_rounds=1,
    latency_s=1.0,
    flat_allocations=100,
    flat_batches=10,
    flat_commands=5,
    relay_pending=50,
    relay_done=100,
    large_done=100,
    large_pending=200,
    large_skus=1_000,
    large_work=32,
    large_warm_up=1,
    memory_before=20,
    memory_after=60,
)
