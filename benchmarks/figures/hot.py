"""Workers that want the same products, against all products; commands for one wait for each other."""

from __future__ import annotations

from dataclasses import dataclass, replace

from benchmarks import stock
from benchmarks.crew import crews
from benchmarks.figure import Figure, per_second, ratios
from benchmarks.peers import load
from benchmarks.peers.peer import Peer
from benchmarks.scale import Scale
from benchmarks.servers import Servers
from benchmarks.turns import take_turn


@dataclass(frozen=True)
class Case:
    """So many commands at once for so many products."""

    key: str
    peer: str
    concurrent: int
    skus: int
    group: int = 1
    goal: float | None = None

    def what(self) -> str:
        """Return the text in the table."""
        products = "one SKU" if self.skus == 1 else f"{self.skus} SKUs"
        groups = f", groups of {self.group}" if self.group > 1 else ""
        return f"commands/s on {products}, {self.concurrent} concurrent{groups}"

    def configured(self) -> Peer:
        """Return the peer with its groups."""
        peer = load(self.peer)
        return replace(peer, env={**peer.env, "ALLOCATION_GROUP_MAX": str(self.group)})


CASES = (
    Case("hot", "ours", 8, 1, goal=0.8),
    Case("hot_groups", "ours", 8, 1, group=16),
    Case("few_groups", "ours_solo", 4, 20, group=16),
)


def measure(servers: Servers, scale: Scale) -> list[Figure]:
    """Alternate between a few SKUs and all."""
    return [_measure(case, servers, scale) for case in CASES]


def _measure(case: Case, servers: Servers, scale: Scale) -> Figure:
    few, all_of_them, count = [], [], 4 * scale.lines
    with crews([case.configured()], servers, case.concurrent) as [crew]:
        for number in range(scale.rounds):
            few.append(take_turn(crew, stock.lines(f"{case.key}-{number}", count, case.skus)).rate)
            all_of_them.append(take_turn(crew, stock.lines(f"{case.key}-all-{number}", count)).rate)
    servers.flush_redis()
    allocated = servers.number(
        "SELECT count(*) FROM allocations WHERE orderid ~ %s", (f"^{case.key}-(all-)?[0-9]",)
    )
    if failed := 2 * scale.rounds * count - allocated:
        raise RuntimeError(f"{failed} commands failed")
    return Figure(
        case.key, case.what(), f"{stock.SKUS:,} SKUs", case.goal, at_least=True,
        ratios=ratios(few, all_of_them), measured=f"{per_second(few, all_of_them, 'commands')}, none failed",
        why="A product is locked until its order's commit is on disk; the next order waits for that.",
    )  # fmt: skip
