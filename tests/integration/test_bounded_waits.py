"""No wait is endless: for a lock, for a frozen worker, or on a server that has become read-only."""

from __future__ import annotations

import time
from collections.abc import Iterator

import psycopg2
import psycopg2.errors
import pytest
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.exc import InternalError

from local.waiting import eventually
from messaging.postgres.engine import connect
from messaging.postgres.transaction import TRANSIENT_ERRORS, Transaction
from messaging.worker.app import MessagingApp
from messaging.worker.housekeeping import relay, rerun
from tests.integration.outbox import app_on, put

LONGEST_RUN_S = 2.0
TRIES = 3


@pytest.fixture
def engine(clean_database: str) -> Iterator[Engine]:
    """Connections like the workers'."""
    engine = connect(clean_database, LONGEST_RUN_S, TRIES, pool_size=1)
    yield engine
    engine.dispose()


@pytest.fixture
def other(clean_database: str) -> Iterator[Engine]:
    """Connections with PostgreSQL's defaults."""
    engine = create_engine(clean_database)
    yield engine
    engine.dispose()


@pytest.fixture
def app(clean_database: str) -> Iterator[MessagingApp]:
    """The backend's app."""
    yield from app_on(clean_database, rerun_cooldown_s=100)


def transaction_on(engine: Engine, statement: str) -> None:
    """Run one statement like a handler, and commit."""
    transaction = Transaction(engine)
    transaction.open()
    try:
        transaction.write(statement)
        transaction.commit()
    finally:
        transaction.close()


def test_a_wait_for_a_lock_ends_in_time_for_another_attempt(engine: Engine, other: Engine) -> None:
    """Another session locks a table; the error is transient, so it is retried."""
    with other.begin() as holder:
        holder.execute(text("LOCK TABLE products IN EXCLUSIVE MODE"))
        start = time.monotonic()

        with pytest.raises(TRANSIENT_ERRORS):
            transaction_on(engine, "INSERT INTO products VALUES ('held')")

    assert time.monotonic() - start < LONGEST_RUN_S


def test_a_frozen_worker_loses_its_locks_and_its_late_commit_is_refused(
    engine: Engine, other: Engine
) -> None:
    """The server ends a transaction that is idle for longer than any run may last."""
    frozen = Transaction(engine)
    frozen.open()
    frozen.write("INSERT INTO products VALUES ('late')")
    frozen.read("LOCK TABLE batches IN EXCLUSIVE MODE; SELECT 1")

    def lock_is_free() -> bool:
        with other.begin() as waiting:
            waiting.execute(text("LOCK TABLE batches IN EXCLUSIVE MODE NOWAIT"))
        return True

    eventually(lock_is_free, 30, "the end of the frozen worker's lock")

    with pytest.raises(TRANSIENT_ERRORS):
        frozen.commit()
    frozen.close()
    with other.connect() as reader:
        assert reader.execute(text("SELECT count(*) FROM products")).scalar_one() == 0


def test_a_session_that_became_read_only_is_dropped_at_the_next_attempt(engine: Engine) -> None:
    """After a failover the pool's old session would refuse every command."""
    connection = engine.raw_connection()
    connection.cursor().execute("SET default_transaction_read_only = on")
    connection.commit()
    connection.close()

    with pytest.raises(psycopg2.errors.ReadOnlySqlTransaction):
        transaction_on(engine, "INSERT INTO products VALUES ('refused')")

    transaction_on(engine, "INSERT INTO products VALUES ('taken')")


def test_stores_drop_a_session_that_became_read_only_too(engine: Engine) -> None:
    """The same through SQLAlchemy's own connections."""
    insert = text("INSERT INTO products VALUES ('sku')")
    with engine.begin() as connection:
        connection.execute(text("SET SESSION default_transaction_read_only = on"))
    with pytest.raises(InternalError), engine.begin() as connection:
        connection.execute(insert)

    with engine.begin() as connection:
        connection.execute(insert)


def test_a_worker_whose_clock_jumps_sends_nothing_too_soon_and_reruns_nothing(
    app: MessagingApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Due times and cool-downs use only the database's clock."""
    put(app, age_s=50)
    real = time.time
    for jump in (-86_400.0, 86_400.0):
        monkeypatch.setattr(time, "time", lambda jump=jump: real() + jump)

        assert rerun(app.dispatcher) == 0
        assert relay(app.dispatcher) == 0
