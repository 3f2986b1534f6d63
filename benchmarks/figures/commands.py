"""Commands per second through real workers, every peer in turn, round after round."""

from __future__ import annotations

import random
from collections import defaultdict
from statistics import median

from benchmarks import pgbench
from benchmarks.crew import Crew, crews
from benchmarks.figure import Figure, per_second, ratios
from benchmarks.peers import NAMES, load
from benchmarks.scale import Scale
from benchmarks.search import at_its_best, best_clients
from benchmarks.servers import Servers
from benchmarks.turns import Turn, sized_turn

FRAMEWORKS = ("rq_peer", "taskiq_peer", "procrastinate_peer")  # those without a goal of their own
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
    "dramatiq_prefork": "Each task crosses two pipes between worker and child, and reports its events.",
    "cpu_dramatiq": "dramatiq reports no task events and logs no line per message.",
    "chapter10_old": "Nothing is loaded here; the rest is Celery and its pool, the same on both sides.",
    "chapter10_old_solo": "Nothing is loaded here; the rest is Celery, the same on both sides.",
    "huey_peer": "Huey acknowledges nothing (a killed worker loses its message) and reports no task events.",
    "dramatiq_peer": "dramatiq reports no task events and logs no line per message.",
    "taskiq_peer": "taskiq's list broker acknowledges nothing and reports no task events.",
    "pgbench": "pgbench only runs the statements, in C; workers and servers share the cores here.",
    "pgbench_bulk": "Each line is checked and handled in Python; workers and servers share the cores.",
}


def measure(servers: Servers, scale: Scale) -> list[Figure]:
    """Find everyone's best settings, run the rounds, then those with 1,000 allocations in each batch."""
    peers = [at_its_best(load(name), servers, scale) for name in NAMES]
    clients = best_clients(servers, scale)
    with crews(peers, servers, scale.processes) as workers:
        turns = _rounds(servers, workers, scale, clients)
        rates = {name: [turn.rate for turn in each] for name, each in turns.items()}
        old = _old_rounds(servers, [crew for crew in workers if crew.peer.name in OLD], scale)
    shown = {peer.name: peer for peer in peers}
    names = {name: peer.shown for name, peer in shown.items()}
    names["pgbench"] = f"pgbench, the same statements ({clients} clients)"
    settings = {name: peer.settings for name, peer in shown.items()}
    return [
        *_figures(rates, old, names, settings),
        _cpu("cpu", turns, "plain_celery_solo", names, settings, 1.0),
        _cpu("cpu_dramatiq", turns, "dramatiq_peer", names, settings, 0.5),
    ]


def _rounds(servers: Servers, workers: list[Crew], scale: Scale, clients: int) -> dict[str, list[Turn]]:
    turns: dict[str, list[Turn]] = defaultdict(list)
    for number in range(scale.rounds):
        for crew in random.sample(workers, len(workers)):
            turn = sized_turn(crew, f"{crew.peer.name}-{number}", scale, seed=number)
            turns[crew.peer.name].append(turn)
        count = scale.lines_of(turns["pgbench"][-1].rate) if number else 10 * scale.lines
        limit = pgbench.run(servers.folder, servers.postgres.url, clients, count, f"pgbench-{number}")
        turns["pgbench"].append(Turn(limit, 0.0, 0.0))
    return turns


def _old_rounds(servers: Servers, workers: list[Crew], scale: Scale) -> Rates:
    """Run the rounds in which each batch already holds 1,000 allocations."""
    for statement in (BOOK_LINES, OUR_LINES):
        servers.rows(statement, (f"SKU-{OLD_SKUS:04}",))
    rates: Rates = defaultdict(list)
    for number in range(scale.rounds):
        for crew in workers:
            turn = sized_turn(crew, f"{crew.peer.name}-old-{number}", scale, OLD_SKUS, number)
            rates[crew.peer.name].append(turn.rate)
    return rates


def _figures(rates: Rates, old: Rates, names: dict[str, str], settings: dict[str, str]) -> list[Figure]:
    def figure(key: str, what: str, ours: str, theirs: str, goal: float, source: Rates = rates) -> Figure:
        return Figure(
            key, f"{what} ({settings[ours]})", names[theirs], goal, at_least=True,
            ratios=ratios(source[ours], source[theirs]),
            measured=per_second(source[ours], source[theirs], "commands"),
            why=WHY.get(key, ""),
        )  # fmt: skip

    prefork, solo = "commands/s, prefork pool", "commands/s, solo processes"
    old_prefork = "commands/s, 1,000 allocations a batch, prefork pool"
    old_solo = "commands/s, 1,000 allocations a batch, solo processes"
    bulk = "commands/s, 100 lines a message, solo processes"
    return [
        figure("dramatiq_peer", solo, "ours_solo", "dramatiq_peer", 1.8),
        figure("dramatiq_prefork", prefork, "ours", "dramatiq_peer", 1.2),
        figure("huey_peer", solo, "ours_solo", "huey_peer", 1.4),
        figure("commands_solo", solo, "ours_solo", "plain_celery_solo", 2.5),
        figure("commands_prefork", prefork, "ours", "plain_celery", 2.5),
        figure("pgbench", solo, "ours_solo", "pgbench", 0.6),
        figure("pgbench_bulk", bulk, "ours_bulk", "pgbench", 1.2),
        *(figure(name, solo, "ours_solo", name, 1) for name in FRAMEWORKS),
        figure("chapter10_fresh", prefork, "ours", "chapter10", 2),
        figure("chapter10_fresh_solo", solo, "ours_solo", "chapter10_solo", 2),
        figure("chapter10_old", old_prefork, "ours", "chapter10", 10, old),
        figure("chapter10_old_solo", old_solo, "ours_solo", "chapter10_solo", 10, old),
    ]


def _cpu(
    key: str,
    turns: dict[str, list[Turn]],
    theirs: str,
    names: dict[str, str],
    settings: dict[str, str],
    goal: float,
) -> Figure:
    mine = [_cpu_of(turn) for turn in turns["ours_solo"]]
    others = [_cpu_of(turn) for turn in turns[theirs]]
    return Figure(
        key, f"CPU per command, workers and servers, solo processes ({settings['ours_solo']})",
        names[theirs], goal, at_least=False,
        ratios=ratios(mine, others), measured=f"{median(mine):.2f} : {median(others):.2f} ms",
        why=WHY.get(key, ""),
    )  # fmt: skip


def _cpu_of(turn: Turn) -> float:
    return turn.worker_cpu_ms + turn.server_cpu_ms
