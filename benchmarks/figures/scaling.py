"""Two workers against one: the rate, given enough cores, and the CPU per command, which must not grow."""

from __future__ import annotations

import os
from statistics import median

from benchmarks.crew import crews
from benchmarks.figure import Figure, per_second, ratios
from benchmarks.peers.ours_solo import solo
from benchmarks.scale import Scale
from benchmarks.servers import Servers
from benchmarks.turns import Turn, sized_turn

CORES = 4  # two for the workers, as many for PostgreSQL and Redis


def measure(servers: Servers, scale: Scale) -> list[Figure]:
    """Take turns with one worker and with two."""
    one, two = solo("one", "one worker", 10), solo("two", "two workers", 12)
    ones: list[Turn] = []
    twos: list[Turn] = []
    with crews([one], servers, 1) as [alone], crews([two], servers, 2) as [pair]:
        for number in range(scale.rounds):
            ones.append(sized_turn(alone, f"one-{number}", scale))
            twos.append(sized_turn(pair, f"two-{number}", scale))
    rates = [turn.rate for turn in twos], [turn.rate for turn in ones]
    cpu = [_cpu(turn) for turn in twos], [_cpu(turn) for turn in ones]
    return [
        Figure(
            "scaling", "commands/s of two workers", "one worker", 1.7, at_least=True,
            ratios=ratios(*rates), measured=per_second(*rates, "commands"),
            decidable=(os.cpu_count() or 1) >= CORES,
            why="Workers and servers share the cores of this machine; the next row counts CPU instead.",
        ),
        Figure(
            "scaling_cpu", "CPU per command with two workers", "one worker", 1.1, at_least=False,
            ratios=ratios(*cpu), measured=f"{median(cpu[0]):.2f} : {median(cpu[1]):.2f} ms",
            why="More busy processes than cores: switching between them takes CPU too.",
        ),
    ]  # fmt: skip


def _cpu(turn: Turn) -> float:
    return turn.worker_cpu_ms + turn.server_cpu_ms
