"""Event deliveries per second against plain tasks that do the handler's work without a row to finish."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

import psycopg2
from psycopg2.extras import execute_values

from benchmarks.crew import crews
from benchmarks.figure import Figure, per_second, ratios
from benchmarks.peers import dramatiq_peer, ours, plain_celery
from benchmarks.peers.peer import Line, Peer, database_url
from benchmarks.scale import Scale
from benchmarks.search import at_its_best
from benchmarks.servers import Servers
from benchmarks.turns import sized_turn
from local.processes.programs import WORK_QUEUES
from messaging.delivery import Delivery, new_id
from tasks import app

INSERT = """
INSERT INTO deliveries
    (id, event_id, event_type, payload, handler, due_at, grace_s, correlation_id, causation_id) VALUES %s"""
TEMPLATE = "(%s, %s, 'Deallocated', %s, 'reallocate', now() + interval '1 hour', 15, 'c', 'c')"


def publish_deliveries(lines: Sequence[Line]) -> None:
    """Commit a `Deallocated` per line, then send its handler's messages as a command does."""
    deliveries = [
        Delivery(new_id(), "Deallocated", vars(line), "reallocate", "c", "c")
        for line in lines
    ]  # fmt: skip
    connection = psycopg2.connect(database_url())
    with connection, connection.cursor() as run:
        rows = [(delivery.id, delivery.id, json.dumps(delivery.payload)) for delivery in deliveries]
        execute_values(run, INSERT, rows, TEMPLATE)
    connection.close()
    app.dispatcher.send(deliveries)


def publish_plain(lines: Sequence[Line]) -> None:
    """Send one task per line."""
    for line in lines:
        plain_celery.app.send_task(
            "plain.reallocate", (line.orderid, line.sku, line.qty), ignore_result=True
        )  # fmt: skip


def publish_dramatiq(lines: Sequence[Line]) -> None:
    """Send one message per line."""
    for line in lines:
        dramatiq_peer.reallocate.send(line.orderid, line.sku, line.qty)


def measure(servers: Servers, scale: Scale) -> list[Figure]:
    """Take turns, each with its best settings."""
    peers = [
        replace(ours.peer, publish=publish_deliveries),
        # The same broker: workers that are paused take nothing.
        replace(
            ours.peer,
            name="ours_solo",
            publish=publish_deliveries,
            choices=ours.solo_choices("tasks", "ours_solo", WORK_QUEUES, ours.OUR_PREFETCHES),
        ),
        replace(
            plain_celery.peer, title="a plain Celery task without a row to finish", publish=publish_plain
        ),
        replace(dramatiq_peer.peer, title="a bare dramatiq actor", publish=publish_dramatiq),
    ]
    peers = [at_its_best(peer, servers, scale) for peer in peers]
    rates: dict[str, list[float]] = {peer.name: [] for peer in peers}
    with crews(peers, servers, scale.processes) as workers:
        for number in range(scale.rounds):
            for crew in workers:
                turn = sized_turn(crew, f"{crew.peer.name}-event-{number}", scale)
                rates[crew.peer.name].append(turn.rate)
    prefork, solo, plain, dramatiq = peers
    return [
        _figure("events", "prefork pool", prefork, plain, 0.8, rates),
        _figure("events_dramatiq", "solo processes", solo, dramatiq, 1.2, rates),
        _figure("events_dramatiq_prefork", "prefork pool", prefork, dramatiq, None, rates),
    ]


def _figure(
    key: str, pool: str, mine: Peer, other: Peer, goal: float | None, rates: dict[str, list[float]]
) -> Figure:
    pair = rates[mine.name], rates[other.name]
    return Figure(
        key, f"event deliveries/s, {pool} ({mine.settings})", other.shown, goal, at_least=True,
        ratios=ratios(*pair), measured=per_second(*pair, "deliveries"),
        why="Each delivery is a row that is claimed and finished in PostgreSQL.",
    )  # fmt: skip
