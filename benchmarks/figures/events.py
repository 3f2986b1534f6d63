"""Event deliveries per second against a plain task that does the handler's work without a row to finish."""

from __future__ import annotations

import json
from collections.abc import Sequence

import psycopg2
from psycopg2.extras import execute_values

from benchmarks import stock
from benchmarks.crew import crews
from benchmarks.figure import Figure, per_second, ratios
from benchmarks.peers import ours, plain_celery
from benchmarks.peers.peer import Line, Peer, database_url
from benchmarks.scale import Scale
from benchmarks.servers import Servers
from benchmarks.turns import take_turn
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


def measure(servers: Servers, scale: Scale) -> list[Figure]:
    """Take turns."""
    mine = Peer("ours", "deliveries", ours.workers, publish_deliveries)
    plain = Peer("plain_celery", "plain Celery tasks", plain_celery.workers, publish_plain)
    ours_rates, plain_rates = [], []
    with crews([mine, plain], servers, scale.processes) as [mine_crew, plain_crew]:
        for number in range(scale.rounds):
            ours_rates.append(take_turn(mine_crew, stock.lines(f"event-{number}", scale.lines)).rate)
            plain_rates.append(take_turn(plain_crew, stock.lines(f"plain-event-{number}", scale.lines)).rate)
    return [
        Figure(
            "events", "event deliveries/s, prefork pool", "a plain Celery task without a row to finish", 0.8,
            at_least=True, ratios=ratios(ours_rates, plain_rates),
            measured=per_second(ours_rates, plain_rates, "deliveries"),
        )
    ]  # fmt: skip
