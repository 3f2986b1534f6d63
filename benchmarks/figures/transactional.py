"""Sending inside the app's own transaction: what it costs, and how many a second one relay forwards."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from statistics import median
from typing import Any

import psycopg2

from allocation.client import Allocate, AllocationClient, outbox
from benchmarks import stock
from benchmarks.crew import crews
from benchmarks.figure import Figure, per_second, ratios
from benchmarks.peers import load
from benchmarks.peers.peer import Line, redis_url
from benchmarks.scale import Scale
from benchmarks.servers import Servers
from messaging.client import Outcome
from messaging.client.databases import DriverDatabase

#: Of the peer whose workers answer; `ours_bulk` names the same.
BROKER, RESULTS = 12, 13
SHOP = """
CREATE SCHEMA shop;
CREATE TABLE shop.orders (id text PRIMARY KEY, sku text NOT NULL);
CREATE TABLE shop.plain (id text PRIMARY KEY, task text, fields text, created_at double precision);
CREATE TABLE shop.told (id text, what text)"""
PLAIN = "INSERT INTO shop.plain VALUES (%s, %s, %s, extract(epoch FROM clock_timestamp()))"


def measure(servers: Servers, scale: Scale) -> list[Figure]:
    """Measure both on a shop in the benchmark's own PostgreSQL."""
    servers.rows(SHOP)
    try:
        with closing(_connect(servers)) as connection:
            outbox.create_table(connection)
            connection.commit()
            cost = _cost(connection, scale)
        return [cost, _rate(servers, scale)]
    finally:
        servers.rows("DROP SCHEMA shop CASCADE")


def _connect(servers: Servers) -> Any:
    url = servers.postgres.url.replace("+psycopg2", "", 1)
    return psycopg2.connect(url, options="-c search_path=shop")


def _cost(connection: Any, scale: Scale) -> Figure:
    """Compare two transactions in turns: an order with its command, and an order with a plain row as long."""
    with_command, with_row = list[float](), list[float]()
    for number in range(scale.rounds):
        lines = stock.lines(f"cost-{number}", scale.lines * 2, seed=number)
        spent = [
            (_transaction(connection, one, _send), _transaction(connection, other, _insert))
            for one, other in zip(lines[::2], lines[1::2], strict=True)
        ]
        with_command.append(median(mine for mine, _ in spent))
        with_row.append(median(plain for _, plain in spent))
    return Figure(
        "transactional_send", "a transaction that writes an order and sends",
        "with a plain INSERT instead", 1.3, at_least=False, ratios=ratios(with_command, with_row),
        measured=f"{median(with_command):.2f} : {median(with_row):.2f} ms",
        why="The command's table has one index more, and its text is made in Python.",
    )  # fmt: skip


def _transaction(connection: Any, line: Line, also: Callable[[Any, Any, Line], object]) -> float:
    """Return the milliseconds of a transaction."""
    start = time.perf_counter()
    with closing(connection.cursor()) as cursor:
        cursor.execute("INSERT INTO shop.orders VALUES (%s, %s)", (line.orderid, line.sku))
        also(connection, cursor, line)
    connection.commit()
    return (time.perf_counter() - start) * 1000


def _send(connection: Any, _cursor: Any, line: Line) -> None:
    outbox.send(connection, Allocate(line.orderid, line.sku, line.qty), key=line.orderid)


def _insert(_connection: Any, cursor: Any, line: Line) -> None:
    fields = f'{{"orderid": "{line.orderid}", "qty": {line.qty}, "sku": "{line.sku}"}}'
    cursor.execute(PLAIN, (line.orderid, "allocation.allocate", fields))


def _rate(servers: Servers, scale: Scale) -> Figure:
    """Compare one relay with `many`, from the first command to the last answer."""
    count = scale.lines * 5
    relayed, many = list[float](), list[float]()
    with crews([load("ours_bulk")], servers, scale.processes) as [crew]:
        crew.resume()
        for number in range(scale.rounds):
            relayed.append(_relay(servers, stock.lines(f"relayed-{number}", count, seed=number)))
            many.append(_many(stock.lines(f"many-{number}", count, seed=number)))
    return Figure(
        "transactional_relay", "commands/s, one relay, answers noted", "the client's `many`", 0.5,
        at_least=True, ratios=ratios(relayed, many), measured=per_second(relayed, many, "commands"),
        why="The relay writes about each command five times; its database shares the cores.",
    )  # fmt: skip


def _relay(servers: Servers, lines: Sequence[Line]) -> float:
    servers.rows("TRUNCATE shop.command_outbox, shop.told")
    with closing(_connect(servers)) as connection:
        for line in lines:
            _send(connection, None, line)
        connection.commit()
    relay = outbox.relay(
        DriverDatabase(lambda: _connect(servers)), redis_url(BROKER), redis_url(RESULTS), on_answer=_note
    )
    start = time.perf_counter()
    if not relay.drain(120):
        raise TimeoutError(f"{relay.waiting()} after two minutes")
    return len(lines) / (time.perf_counter() - start)


def _note(outcome: Outcome, connection: Any) -> None:
    with closing(connection.cursor()) as cursor:
        cursor.execute("INSERT INTO shop.told VALUES (%s, %s)", (outcome.key, outcome.result))


def _many(lines: Sequence[Line]) -> float:
    commands = [(line.orderid, Allocate(line.orderid, line.sku, line.qty)) for line in lines]
    with AllocationClient(redis_url(BROKER), redis_url(RESULTS)) as client:
        start = time.perf_counter()
        answered = sum(outcome.error is None for outcome in client.many(commands))
        spent = time.perf_counter() - start
    if answered < len(lines):
        raise RuntimeError(f"{answered} of {len(lines)} were carried out")
    return len(lines) / spent
