"""The shop: it takes orders, one transaction each, and notes what became of them.

`python -m tests.transactional_send.shop app …` takes the orders of one round and ends; started again, it goes
on where it was killed. `python -m tests.transactional_send.shop relay …` relays until it is killed.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from allocation.client import Allocate, outbox
from messaging.client.answers import Outcome
from messaging.client.databases import DriverDatabase
from messaging.client.pace import Pace
from messaging.client.tool import run
from tests.transactional_send.tracing import Trace, append, connect, lines

TABLES = (
    "CREATE TABLE orders (id varchar(255) PRIMARY KEY, sku varchar(255) NOT NULL)",
    # No unique key: what is told twice is to show.
    "CREATE TABLE told (order_id varchar(255) NOT NULL, what varchar(255) NOT NULL)",
)
#: Short, so that a round takes seconds.
PACE = Pace(size=5, interval_s=0.02, lease_s=1, answer_after_s=2, answer_after_max_s=8, pause_max_s=0.5)


@dataclass(frozen=True)
class Order:
    """An order of a customer, and what the shop does with it."""

    id: str
    sku: str
    group: str | None
    rolled_back: bool  # the shop changes its mind at the end of the transaction
    given_up: bool  # the customer does not come back when the shop dies over it


def plan(seed: int, number: int, count: int) -> list[Order]:
    """Return the orders of a round."""
    rng = random.Random(f"{seed} {number}")
    skus = ["LAMP", "LAMP", "CHAIR", "SCARCE", f"LATE-{number}", "UNKNOWN"]
    return [
        Order(
            f"order-{number}-{position}",
            rng.choice(skus),
            rng.choice([None, None, f"customer-{number}"]),
            rng.random() < 0.25,
            rng.random() < 0.5,
        )
        for position in range(count)
    ]


def create(url: str) -> None:
    """Create the tables."""
    with closing(connect(url, Trace("nobody", Path("/dev/null")))) as connection:
        connection.trace.before = lambda _statement: None
        for statement in TABLES:
            connection.cursor().execute(statement)
        outbox.create_table(connection)
        connection.commit()


def take_orders(connection: Any, orders: list[Order], begun: Path) -> None:
    """Take each order in a transaction of its own; one that was begun before is taken again, or given up."""
    earlier = lines(begun)
    for order in orders:
        if order.id in earlier and order.given_up:
            continue
        append(begun, order.id)
        if not _is_there(connection, order):
            _take(connection, order)


def _is_there(connection: Any, order: Order) -> bool:
    with closing(connection.cursor()) as cursor:
        cursor.execute(_marked(connection, "SELECT id FROM orders WHERE id = ?"), (order.id,))
        there = cursor.fetchone() is not None
    connection.commit()
    return there


def _take(connection: Any, order: Order) -> None:
    with closing(connection.cursor()) as cursor:
        cursor.execute(_marked(connection, "INSERT INTO orders VALUES (?, ?)"), (order.id, order.sku))
    outbox.send(connection, Allocate(order.id, order.sku, 1), key=order.id, group=order.group)
    if order.rolled_back:
        connection.rollback()
    else:
        connection.commit()


def note(outcome: Outcome, connection: Any) -> None:
    """Note what became of an order."""
    what = type(outcome.error).__name__ if outcome.error else outcome.result or "out of stock"
    with closing(connection.cursor()) as cursor:
        cursor.execute(_marked(connection, "INSERT INTO told VALUES (?, ?)"), (outcome.key, what))


def _marked(connection: Any, sql: str) -> str:
    """Write the placeholders as the connection's driver wants them."""
    return sql if hasattr(connection, "in_transaction") else sql.replace("?", "%s")


def rows(url: str, sql: str) -> Iterator[tuple[Any, ...]]:
    """Read the shop's database, without a trace."""
    with closing(connect(url, Trace("nobody", Path("/dev/null")))) as connection:
        connection.trace.before = lambda _statement: None
        cursor = connection.cursor()
        cursor.execute(sql)
        yield from cursor.fetchall()
        connection.rollback()


def main() -> None:
    """Be the app or a relay."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("role", choices=("app", "relay"))
    parser.add_argument("--database", required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--kill-at")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--round", type=int)
    parser.add_argument("--count", type=int)
    parser.add_argument("--broker-url")
    parser.add_argument("--results-url")
    options = parser.parse_args()
    kind = "postgresql" if options.database.startswith("postgresql:") else "sqlite"
    trace = Trace(f"{options.role} on {kind}", options.folder, options.kill_at)
    if options.role == "app":
        with closing(connect(options.database, trace)) as connection:
            take_orders(
                connection, plan(options.seed, options.round, options.count), options.folder / "begun"
            )
        return
    relay = outbox.relay(
        DriverDatabase(lambda: connect(options.database, trace)),
        options.broker_url,
        options.results_url,
        on_answer=note,
        pace=PACE,
    )
    sender: Any = relay._sender
    reader: Any = relay._reader
    sender.send_lines = trace.around("PUBLISH", sender.send_lines)
    reader.told = trace.around("LOOK FOR ANSWERS", reader.told)
    run(relay)


if __name__ == "__main__":
    main()
