"""A database that has grown for years against an empty one: the same work, in process, in turns.

Both have run for a while since the last checkpoint, as they have most of the time: the first change to each
page after one is logged as a whole page, and a large database has many more pages.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import psycopg2

from allocation.bootstrap import project
from allocation.config import Settings
from allocation.domain.commands import Allocate
from allocation.domain.events import Deallocated
from allocation.service_layer.handlers import reallocate
from benchmarks.figure import Figure, per_second, ratios
from benchmarks.scale import Scale
from benchmarks.servers import Servers
from local.processes.programs import migrate
from messaging.delivery import new_id
from messaging.postgres.attempts import Attempt
from messaging.postgres.inbox import CommandJob
from messaging.postgres.low_water import LowWater
from messaging.postgres.transaction import Transaction
from messaging.project.runtime import Runtime
from messaging.retry import RetryPolicy
from messaging.telemetry.work import NOBODY, Kind, Work
from messaging.unit_of_work import Raised
from messaging.worker.command_group import CommandUnit
from messaging.worker.events import deliver
from messaging.worker.sharing import handle_together

GROUP = 16
WHY = "The large database is many times as large as PostgreSQL's buffers, and its indexes have a level more."
FIRST = slice(1, 4)  # rounds after a checkpoint; the very first one fills caches and prepares statements
EVENTS = 160  # in one transaction, the most
SMALL_SKUS = 1_000
AGAINST = f"{SMALL_SKUS:,} SKUs and no history"
WORK = Work(Kind.COMMAND, "allocation.allocate", "id", "allocation.commands", "c")

STOCK = """
INSERT INTO products (sku) SELECT 'SKU-' || n FROM generate_series(0, %(skus)s - 1) n;
INSERT INTO batches (reference, sku, purchased_quantity)
SELECT 'batch-' || sku, sku, 2000000000 FROM products"""

#: Without a write-ahead log, and with one index built at the end: millions of rows in minutes.
QUICKLY = """
ALTER TABLE attempts SET UNLOGGED;
ALTER TABLE actions SET UNLOGGED;
ALTER TABLE deliveries SET UNLOGGED;
DROP INDEX deliveries_correlation"""
WHOLE_AGAIN = """
CREATE INDEX deliveries_correlation ON deliveries (correlation_id);
ALTER TABLE deliveries SET LOGGED"""

DELIVERIES = """
INSERT INTO deliveries (id, event_id, event_type, payload, handler, due_at, grace_s,
                        correlation_id, causation_id, status, finished_at, attempts)
SELECT gen_random_uuid(), gen_random_uuid(), 'Deallocated', '{"orderid": "o", "sku": "SKU-1", "qty": 1}',
       'reallocate', now() + interval '1 day', 15, 'c' || n, 'c' || n, %(status)s,
       CASE %(status)s WHEN 'done' THEN now() END, 1
FROM generate_series(1, %(count)s) n"""

ANNOUNCEMENTS = """
INSERT INTO announcements (event_id, event_type, payload, correlation_id, causation_id, at)
SELECT gen_random_uuid(), 'OutOfStock', '{}', 'c', 'c', now() FROM generate_series(1, %(count)s)"""


@dataclass(frozen=True)
class Database:
    """One of the two."""

    runtime: Runtime
    skus: int

    def lines(self, name: str, count: int) -> list[tuple[str, str, int]]:
        """Return order lines of different products."""
        chosen = random.Random(name).sample(range(self.skus), count)
        return [(f"{name}-{n}", f"SKU-{sku}", 1) for n, sku in enumerate(chosen)]


def measure(servers: Servers, scale: Scale) -> list[Figure]:
    """Fill one database, then work on both in turns."""
    small = _database(servers, "small", SMALL_SKUS)
    large = _database(servers, "large", scale.large_skus)
    _fill(large, scale)
    kinds: dict[str, Callable[[Database, str, int], float]] = {
        "commands": _commands,
        "grouped commands": _groups,
        "event deliveries": _deliveries,
        "events read and deleted": _announcements,
    }
    rates: dict[str, tuple[list[float], list[float]]] = {kind: ([], []) for kind in kinds}
    servers.rows("CHECKPOINT")
    for number in range(scale.large_warm_up + scale.rounds):
        for kind, work in kinds.items():
            pair = [work(one, f"{kind}-{number}", scale.large_work) for one in (large, small)]
            for rate, into in zip(pair, rates[kind], strict=True):
                into.append(rate)
    for one in (small, large):
        one.runtime.engine.dispose()
    warm = slice(scale.large_warm_up, None)
    measured = {kind: (of_large[warm], of_small[warm]) for kind, (of_large, of_small) in rates.items()}
    rows = (
        f"{scale.large_done:,} done and {scale.large_pending:,} pending deliveries,"
        f" {scale.large_pending:,} events to publish, {scale.large_skus:,} SKUs"
    )
    first_large, first_small = (side[FIRST] for side in rates["commands"])
    return [
        *(
            Figure(
                f"large_{kind.replace(' ', '_')}", f"{kind}/s with {rows}", AGAINST,
                0.83, at_least=True, ratios=ratios(of_large, of_small),
                measured=per_second(of_large, of_small, kind), why=WHY,
            )
            for kind, (of_large, of_small) in measured.items()
        ),
        Figure(
            "large_commands_after_checkpoint", "the same commands, in the first seconds after a checkpoint",
            AGAINST, None, at_least=True, ratios=ratios(first_large, first_small),
            measured=per_second(first_large, first_small, "commands"),
        ),
    ]  # fmt: skip


def _database(servers: Servers, name: str, skus: int) -> Database:
    servers.rows(f"CREATE DATABASE {name}")
    url = servers.postgres.url_of(name)
    migrate(url)
    settings = Settings(_env_file=None, database_url=url)
    database = Database(Runtime(replace(project, settings=lambda: settings)), skus)
    _run(database, STOCK, skus=skus)
    return database


def _fill(database: Database, scale: Scale) -> None:
    _run(database, QUICKLY)
    _run(database, DELIVERIES, status="done", count=scale.large_done)
    _run(database, "VACUUM (ANALYZE)")
    # The backlog comes later: the planner knows nothing of it, as after a burst.
    _run(database, DELIVERIES, status="pending", count=scale.large_pending)
    _run(database, WHOLE_AGAIN)
    _run(database, ANNOUNCEMENTS, count=scale.large_pending)
    _run(database, "VACUUM")


def _run(database: Database, statement: str, **facts: object) -> None:
    url = database.runtime.settings.database_url.replace("+psycopg2", "", 1)
    connection = psycopg2.connect(url)
    connection.autocommit = True
    with connection.cursor() as run:
        run.execute(statement, facts or None)
    connection.close()


def _commands(database: Database, name: str, count: int) -> float:
    runtime = database.runtime
    bus = runtime.project.bus
    commands = [Allocate(*line) for line in database.lines(name, count)]
    start = time.perf_counter()
    for command in commands:
        bus.handle_command(command, [], runtime.unit_of_work(CommandJob(new_id(), command, "c")))
    return count / (time.perf_counter() - start)


def _groups(database: Database, name: str, count: int) -> float:
    commands = [Allocate(*line) for line in database.lines(name, count)]
    units = [
        CommandUnit(database.runtime, CommandJob(new_id(), command, "c"), WORK, NOBODY)
        for command in commands
    ]
    start = time.perf_counter()
    for first in range(0, count, GROUP):
        handle_together(database.runtime, units[first : first + GROUP])
    return count / (time.perf_counter() - start)


def _deliveries(database: Database, name: str, count: int) -> float:
    runtime = database.runtime
    events = [Raised(Deallocated(*line)) for line in database.lines(name, count)]
    with Transaction(runtime.engine) as transaction:
        owed = runtime.outbox.write(transaction, events, "c", "c")
        transaction.commit()
    start = time.perf_counter()
    for delivery in owed:
        deliver(runtime, reallocate, RetryPolicy(), Attempt(runtime.engine, delivery.id, "benchmark"))
    return count / (time.perf_counter() - start)


def _announcements(database: Database, _name: str, count: int) -> float:
    """Publish to nobody; as many are written first, so that some always wait."""
    _run(database, ANNOUNCEMENTS, count=count)
    low, published = LowWater(), 0
    start = time.perf_counter()
    while published < count:
        with database.runtime.announcements.take(min(EVENTS, count - published), low) as events:
            published += len(events)
    return count / (time.perf_counter() - start)
