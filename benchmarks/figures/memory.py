"""The memory of a worker that has run for a long time."""

from __future__ import annotations

from benchmarks import stock
from benchmarks.crew import crews, unshared_mib
from benchmarks.figure import Figure
from benchmarks.peers import load
from benchmarks.scale import Scale
from benchmarks.servers import Servers
from benchmarks.turns import take_turn

TURN = 5_000  # commands
WHY = (
    "Celery keeps a timer for each task until its time limit has passed, even if the task has ended; the"
    " first commands took less time than that. After that, memory stays flat."
)


def measure(servers: Servers, scale: Scale) -> list[Figure]:
    """Run commands; measure the memory after the first few and at the end."""
    before, after = scale.memory_before, scale.memory_after
    with crews([load("ours")], servers, scale.processes) as [crew]:
        take_turn(crew, stock.lines("memory-first", before))
        early = unshared_mib(crew.processes_alive())
        for start in range(before, after, TURN):
            take_turn(crew, stock.lines(f"memory-{start}", min(TURN, after - start)))
            servers.flush_results()
        late = unshared_mib(crew.processes_alive())
    return [
        Figure(
            "memory", f"worker memory after {after:,} commands", f"after {before:,}", 1.05, at_least=False,
            ratios=(late / early,), measured=f"{late:.1f} : {early:.1f} MiB", why=WHY,
        )
    ]  # fmt: skip
