"""Prepared statements: snapshots, a connection's statements, and plans outdated by a migration."""

import threading
from collections.abc import Iterator

import psycopg2
import psycopg2.errors
import pytest
from sqlalchemy import Engine, create_engine

from local.waiting import eventually
from messaging.postgres.transaction import Statement, Transaction

LOCK = Statement("SELECT FROM pieces WHERE name = $1 FOR UPDATE", "text")
READ = Statement("SELECT * FROM pieces WHERE name = $1", "text")
TAKE = Statement("UPDATE pieces SET room = room - $1 WHERE name = $2", "integer", "text")


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """An engine on this test's own table."""
    engine = create_engine(database_url, pool_size=2)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE pieces (name text PRIMARY KEY, room integer)")
        connection.exec_driver_sql("INSERT INTO pieces VALUES ('last', 1)")
    yield engine
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE pieces")
    engine.dispose()


def _lock_and_read(transaction: Transaction) -> list[tuple[object, ...]]:
    transaction.open()
    transaction.write(LOCK, ("last",))
    return transaction.read(READ, ("last",))


def test_rows_read_after_the_lock_are_as_fresh_as_the_lock(engine: Engine):
    """A transaction that waited for the lock sees the first one's writes: EXECUTE takes a new snapshot."""
    first, second = Transaction(engine), Transaction(engine)
    _lock_and_read(first)
    seen: list[object] = []
    waiter = threading.Thread(target=lambda: seen.extend(_lock_and_read(second)))
    waiter.start()
    with engine.connect() as onlooker:
        eventually(
            lambda: onlooker.exec_driver_sql("SELECT count(*) FROM pg_locks WHERE NOT granted").scalar_one(),
            what="the second transaction waiting for the lock",
        )

    first.write(TAKE, (1, "last"))
    first.commit()
    first.close()
    waiter.join(30)
    second.close()

    assert seen == [("last", 0)]


def test_a_statement_is_planned_once_per_connection(engine: Engine):
    """When the pool reuses the connection, the statement is still prepared."""
    for _ in range(3):
        transaction = Transaction(engine)
        _lock_and_read(transaction)
        transaction.close()

    transaction = Transaction(engine)
    transaction.open()
    names = transaction.read("SELECT name FROM pg_prepared_statements ORDER BY name")
    transaction.close()

    assert names == sorted([(LOCK.name,), (READ.name,)])


def test_a_connection_with_an_outdated_plan_is_discarded(engine: Engine):
    """A migration that adds a column outdates `SELECT *`: the next try has a connection that plans anew."""
    transaction = Transaction(engine)
    _lock_and_read(transaction)
    transaction.close()
    with engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE pieces ADD COLUMN colour text")

    with pytest.raises(psycopg2.errors.FeatureNotSupported):
        _lock_and_read(transaction)
    transaction.close()

    assert _lock_and_read(transaction) == [("last", 1, None)]
    transaction.close()


def test_a_connection_that_lost_its_statements_is_discarded(engine: Engine):
    """DISCARD ALL, which a connection pooler may send, makes EXECUTE fail once."""
    transaction = Transaction(engine)
    _lock_and_read(transaction)
    transaction.write("DEALLOCATE ALL")
    transaction.commit()
    transaction.close()

    with pytest.raises(psycopg2.errors.InvalidSqlStatementName):
        _lock_and_read(transaction)
    transaction.close()

    assert _lock_and_read(transaction) == [("last", 1)]
    transaction.close()
