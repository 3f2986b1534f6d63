"""What Flower's metrics say of the database."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, create_engine, text

from local.waiting import eventually
from messaging.flower import metrics
from messaging.flower.metrics import DeliveryCollector
from messaging.operator import health
from messaging.operator.health import Health
from messaging.worker.app import MessagingApp
from tests.integration.outbox import app_on, put

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
