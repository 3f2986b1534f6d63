"""Commands per second through real workers, every peer in turn, round after round."""

from __future__ import annotations

import random
from collections import defaultdict
from statistics import median

from benchmarks import pgbench, stock
from benchmarks.crew import Crew, crews
from benchmarks.figure import Figure, per_second, ratios
from benchmarks.peers import NAMES, load
from benchmarks.scale import Scale
from benchmarks.servers import Servers
from benchmarks.turns import Turn, take_turn

FRAMEWORKS = ("dramatiq_peer", "rq_peer", "huey_peer", "taskiq_peer", "procrastinate_peer")
BOOK_LINES = """
INSERT INTO book_order_lines (orderid, sku, qty, batch_id)
SELECT 'old-' || id || '-' || n, sku, 1, id FROM book_batches, generate_series(1, 1000) n WHERE sku < %s"""
OUR_LINES = """
INSERT INTO allocations (orderid, sku, qty, batch_reference)
SELECT 'old-' || reference || '-' || n, sku, 1, reference FROM batches, generate_series(1, 1000) n
WHERE sku < %s"""
OLD_SKUS = 20  # with 1,000 allocations each
OLD = ("ours", "ours_solo", "chapter10", "chapter10_solo")  # who allocates to these

Rates = dict[str, list[float]]

#: Shown if a goal is missed.
WHY = {
    "commands_prefork": "Celery, its events and its pool take most of the time, the same on both sides.",
    "commands_solo": "Celery and its events take most of the time, the same on both sides.",
    "chapter10_old": "Nothing is loaded here; the rest is Celery and its pool, the same on both sides.",
    "chapter10_old_solo": "Nothing is loaded here; the rest is Celery, the same on both sides.",
    "huey_peer": "Huey acknowledges nothing (a killed worker loses its message) and reports no task events.",
    "dramatiq_peer": "dramatiq reports no task events and logs no line per message.",
    "taskiq_peer": "taskiq's list broker acknowledges nothing and reports no task events.",
    "pgbench": "pgbench only runs the statements, in C; workers and servers share the cores here.",
    "pgbench_bulk": "Each line is checked and handled in Python; workers and servers share the cores.",
}


def measure(servers: Servers, scale: Scale) -> list[Figure]:
    """Run the rounds of all peers, then those with 1,000 allocations in each batch."""
    with crews([load(name) for name in NAMES], servers, scale.processes) as workers:
        turns = _rounds(servers, workers, scale)
        rates = {name: [turn.rate for turn in each] for name, each in turns.items()}
        rates["pgbench"] = [turn.rate for turn in turns["pgbench"]]
        old = _old_rounds(servers, [crew for crew in workers if crew.peer.name in OLD], scale)
    return [*_figures(rates, old), _cpu(turns)]


def _rounds(servers: Servers, workers: list[Crew], scale: Scale) -> dict[str, list[Turn]]:
    turns: dict[str, list[Turn]] = defaultdict(list)
    for number in range(scale.rounds):
        for crew in random.sample(workers, len(workers)):
            count = scale.lines * crew.peer.lines_factor
            lines = stock.lines(f"{crew.peer.name}-{number}", count, seed=number)
            turns[crew.peer.name].append(take_turn(crew, lines))
        limit = pgbench.run(
            servers.folder, servers.postgres.url, scale.processes, scale.lines * 2, f"pgbench-{number}"
        )
        turns["pgbench"].append(Turn(limit, 0.0, 0.0))
    return turns


def _old_rounds(servers: Servers, workers: list[Crew], scale: Scale) -> Rates:
    """Run the rounds in which each batch already holds 1,000 allocations."""
    for statement in (BOOK_LINES, OUR_LINES):
        servers.rows(statement, (f"SKU-{OLD_SKUS:04}",))
    rates: Rates = defaultdict(list)
    for number in range(scale.rounds):
        for crew in workers:
            lines = stock.lines(f"{crew.peer.name}-old-{number}", scale.slow_lines, OLD_SKUS, number)
            rates[crew.peer.name].append(take_turn(crew, lines).rate)
    return rates


def _figures(rates: Rates, old: Rates) -> list[Figure]:
    def figure(key: str, what: str, ours: str, theirs: str, goal: float, source: Rates = rates) -> Figure:
        return Figure(
            key, what, load_title(theirs), goal, at_least=True,
            ratios=ratios(source[ours], source[theirs]),
            measured=per_second(source[ours], source[theirs], "commands"),
            why=WHY.get(key, ""),
        )  # fmt: skip

    commands, thousand = "commands/s", "commands/s, 1,000 allocations a batch"
    return [
        figure("commands_prefork", f"{commands}, prefork pool", "ours", "plain_celery", 1.3),
        figure("commands_solo", f"{commands}, solo processes", "ours_solo", "plain_celery_solo", 1.3),
        figure("chapter10_fresh", f"{commands}, prefork pool", "ours", "chapter10", 2),
        figure("chapter10_fresh_solo", f"{commands}, solo processes", "ours_solo", "chapter10_solo", 2),
        figure("chapter10_old", f"{thousand}, prefork pool", "ours", "chapter10", 10, old),
        figure("chapter10_old_solo", f"{thousand}, solo processes", "ours_solo", "chapter10_solo", 10, old),
        *(figure(name, f"{commands}, solo processes", "ours_solo", name, 1) for name in FRAMEWORKS),
        figure("pgbench", f"{commands}, solo processes", "ours_solo", "pgbench", 0.4),
        figure("pgbench_bulk", f"{commands}, 100 lines a message", "ours_bulk", "pgbench", 0.7),
    ]


def load_title(name: str) -> str:
    """Return the name of a peer as shown in the table."""
    return "pgbench, the same statements" if name == "pgbench" else load(name).title


def _cpu(turns: dict[str, list[Turn]]) -> Figure:
    ours, theirs = turns["ours_solo"], turns["plain_celery_solo"]
    mine, others = [_cpu_of(turn) for turn in ours], [_cpu_of(turn) for turn in theirs]
    return Figure(
        "cpu", "CPU per command, workers and servers", "plain Celery, solo processes", 1.0, at_least=False,
        ratios=ratios(mine, others), measured=f"{median(mine):.2f} : {median(others):.2f} ms",
    )  # fmt: skip


def _cpu_of(turn: Turn) -> float:
    return turn.worker_cpu_ms + turn.server_cpu_ms
