"""Eight workers on one SKU against eight on a thousand: commands for a hot product wait, none fails."""

from __future__ import annotations

from benchmarks import stock
from benchmarks.crew import crews
from benchmarks.figure import Figure, per_second, ratios
from benchmarks.peers import load
from benchmarks.scale import Scale
from benchmarks.servers import Servers
from benchmarks.turns import take_turn

WORKERS = 8


def measure(servers: Servers, scale: Scale) -> list[Figure]:
    """Alternate between one SKU and all."""
    hot, spread, count = [], [], 2 * scale.lines
    with crews([load("ours")], servers, WORKERS) as [crew]:
        for number in range(scale.rounds):
            hot.append(take_turn(crew, stock.lines(f"hot-{number}", count, 1)).rate)
            spread.append(take_turn(crew, stock.lines(f"spread-{number}", count)).rate)
    allocated = servers.number("SELECT count(*) FROM allocations WHERE orderid ~ '^(hot|spread)-'")
    failed = 2 * scale.rounds * count - allocated
    if failed:
        raise RuntimeError(f"{failed} commands failed")
    return [
        Figure(
            "hot", "commands/s on one SKU, 8 concurrent", "1,000 SKUs", 0.8, at_least=True,
            ratios=ratios(hot, spread), measured=f"{per_second(hot, spread, 'commands')}, none failed",
            why="A product is locked until its order's commit is on disk; the next order waits for that.",
        )
    ]  # fmt: skip
