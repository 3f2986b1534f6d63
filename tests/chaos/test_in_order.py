"""The check of the order finds what it should find, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Connection, create_engine

from local.processes.programs import migrate
from local.servers.postgres_server import Postgres
from messaging.delivery import new_id
from testing.databases import FAST
from tests.chaos.in_order import DOUBLES, RULES, TABLES

OUT_OF_ORDER, WITHOUT_EFFECT = RULES.values()
[TWICE] = DOUBLES.values()

COMMAND = "INSERT INTO inbox (task_id, command, result) VALUES ('{cause}', 'Allocate()', 'null')"
DELIVERY = """
INSERT INTO deliveries (id, event_id, event_type, payload, handler, status, due_at, grace_s, finished_at,
                        correlation_id, causation_id, lane, position)
VALUES ('{id}', '{id}', 'Allocated', '{{}}', 'record_move', 'done', now(), 1, now(), '{cause}', '{cause}',
        'LAMP', nextval('deliveries_position'))"""


@pytest.fixture(scope="module")
def database(server_folder: Path) -> Iterator[Connection]:
    """A database that keeps the time of each commit."""
    settings = {**FAST, "track_commit_timestamp": "on"}
    with Postgres(server_folder / "order", settings=settings) as server:
        migrate(server.url)
        engine = create_engine(server.url, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.exec_driver_sql(TABLES)
            yield connection
        engine.dispose()


def raised(database: Connection, *, upside_down: bool = False) -> list[str]:
    """Have two commands raise an event each; return their deliveries, in the order of the commits.

    `upside_down`: the rows have the opposite positions, as if no lock had been held.
    """
    database.exec_driver_sql("TRUNCATE deliveries, inbox, moves CASCADE")
    ids = [new_id(), new_id()]
    for cause in ids:
        database.exec_driver_sql(COMMAND.format(cause=f"c-{cause}"))
    for delivery_id in reversed(ids) if upside_down else ids:
        database.exec_driver_sql(DELIVERY.format(id=delivery_id, cause=f"c-{delivery_id}"))
    return ids


def moved(database: Connection, *ids: str) -> None:
    for delivery_id in ids:
        database.exec_driver_sql("INSERT INTO moves (delivery_id, sku) VALUES (%s, 'LAMP')", (delivery_id,))


def findings(database: Connection, rule: str) -> int:
    return len(database.exec_driver_sql(rule.replace("%", "%%")).all())


@pytest.mark.parametrize("upside_down", [False, True])
def test_effects_in_another_order_than_the_commits_are_found(database: Connection, upside_down: bool):
    first, second = raised(database, upside_down=upside_down)
    moved(database, second, first)
    assert findings(database, OUT_OF_ORDER) == 2

    first, second = raised(database, upside_down=upside_down)
    moved(database, first, second)
    assert findings(database, OUT_OF_ORDER) == 0


def test_commands_of_one_transaction_are_in_order_with_and_without_savepoints(database: Connection):
    """As in a group: one that was read for in a later wave sends nothing by itself, and has none."""
    database.exec_driver_sql("TRUNCATE deliveries, inbox, moves CASCADE")
    ids = [new_id() for _ in range(3)]
    first, second, third = (
        f"{COMMAND.format(cause=f'c-{each}')}; {DELIVERY.format(id=each, cause=f'c-{each}')};" for each in ids
    )
    database.exec_driver_sql(f"BEGIN; {first} SAVEPOINT two; {second} RELEASE two; {third} COMMIT")

    moved(database, *ids)

    assert findings(database, OUT_OF_ORDER) == 0


def test_an_effect_that_is_missing_or_happened_twice_is_found(database: Connection):
    first, _second = raised(database)
    moved(database, first, first)

    assert findings(database, WITHOUT_EFFECT) == 1
    assert findings(database, TWICE) == 1
