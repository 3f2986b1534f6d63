"""What Flower's metrics say of the database."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, create_engine, text

from local.servers.postgres_server import Postgres
from local.waiting import eventually
from messaging.flower import metrics
from messaging.flower.metrics import DeliveryCollector
from messaging.operator import health
from messaging.operator.check import Checkup, Problem
from messaging.operator.health import Health
from messaging.worker.app import MessagingApp
from testing.databases import FAST
from tests.integration.outbox import app_on, ask, put

WAITING = text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")


@pytest.fixture
def engine(clean_database: str) -> Iterator[Engine]:
    """The project's database."""
    engine = create_engine(clean_database)
    yield engine
    engine.dispose()


@pytest.fixture
def app(clean_database: str) -> Iterator[MessagingApp]:
    """The backend's app over an empty database."""
    yield from app_on(clean_database)


def test_a_session_counts_as_blocked_once_it_has_waited_for_long(engine: Engine, monkeypatch):
    """Orders for the same product always wait for each other; nobody is to be woken up for that."""
    lock = text("LOCK TABLE products")

    def wait() -> None:
        with engine.begin() as waiter:
            waiter.execute(lock)

    def waits() -> bool:
        with engine.connect() as watcher:
            return bool(watcher.execute(WAITING).scalar_one())

    with engine.connect() as holder:
        holder.execute(lock)
        thread = threading.Thread(target=wait)
        thread.start()
        eventually(waits, 10, "a session that waits")

        monkeypatch.setattr(health, "BLOCKED_S", 60.0)
        assert Health(engine).lags().blocked == 0
        monkeypatch.setattr(health, "BLOCKED_S", 0.01)
        eventually(lambda: Health(engine).lags().blocked == 1, 10, "a session that has waited for long")
        holder.rollback()
        thread.join()


def test_counts_that_are_old_are_not_returned(app: MessagingApp, monkeypatch):
    """A server that hangs raises no error, so the last counts would be returned for ever."""
    collector = DeliveryCollector(app)
    monkeypatch.setattr(DeliveryCollector, "_backlogs", lambda _: {})
    monkeypatch.setattr(DeliveryCollector, "_load", lambda _: None)
    collector.refresh()

    names = [metric.name for metric in collector.collect()]
    monkeypatch.setattr(metrics, "OLD_S", 0.0)
    [up] = collector.collect()

    assert "allocation_deliveries" in names
    assert (up.name, up.samples[0].value) == ("allocation_database_up", 0)


def test_a_prepared_transaction_that_blocks_others_is_named(tmp_path: Path):
    """It has no session."""
    settings = {**FAST, "max_prepared_transactions": "1"}
    with Postgres(tmp_path / "postgres", settings=settings) as server:
        engine = create_engine(server.url)
        lock = text("LOCK TABLE held")
        with engine.begin() as connection:
            connection.execute(text("CREATE TABLE held (id integer)"))
        with engine.connect() as connection:
            connection.execute(lock)
            connection.execute(text("PREPARE TRANSACTION 'forgotten'"))

        def wait() -> None:
            with engine.begin() as waiter:
                waiter.execute(lock)

        thread = threading.Thread(target=wait)
        thread.start()
        [blocker] = eventually(lambda: Health(engine).blockers(0.01), 10, "a session that waits")
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text("ROLLBACK PREPARED 'forgotten'"))
        thread.join()
        engine.dispose()

    assert str(blocker) == "a prepared transaction (SELECT * FROM pg_prepared_xacts) blocks 1"


def test_the_clock_of_a_housekeeping_worker_that_does_not_run_is_not_known(app: MessagingApp):
    """If it is ahead of beat's, the worker drops every run, so none of them shows that."""
    checkup = Checkup(lambda: app, app.runtime, "tasks")
    app.runtime.heartbeats.note("relay", "housekeeping@here")
    assert "not known" not in checkup.clocks()

    ask(app, "UPDATE heartbeats SET at = now() - interval '1 h' RETURNING 1")

    assert "the housekeeping worker's is not known" in checkup.clocks()
    with pytest.raises(Problem, match="synchronise their clocks"):
        checkup.beat()


def test_done_deliveries_are_counted_apart_and_outlast_a_moment_without_the_database(
    app: MessagingApp, monkeypatch
):
    """On a large table that takes minutes, in which the other counts go on; until then nothing says zero."""
    collector = DeliveryCollector(app)
    monkeypatch.setattr(DeliveryCollector, "_backlogs", lambda _: {})
    monkeypatch.setattr(DeliveryCollector, "_load", lambda _: None)
    put(app, status="done")

    def done() -> float | None:
        found = {metric.name: metric for metric in collector.collect()}["allocation_deliveries"]
        labels = {"state": "done", "handler": "send_out_of_stock_notification"}
        return next((sample.value for sample in found.samples if sample.labels == labels), None)

    collector.refresh()
    assert done() is None
    collector.count_done()
    assert done() == 1
    collector._snapshot = metrics.Snapshot()  # as after an error
    collector.refresh()
    assert done() == 1
