"""Other Celery apps on our Redis database: no app requeues another's messages."""

from __future__ import annotations

import json
import os
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery
from sqlalchemy import create_engine, text

from local.processes.child import Child
from local.waiting import eventually
from tests.e2e.conftest import FAST, Backend, Broker

VISIBILITY_TIMEOUT_S = int(FAST["ALLOCATION_VISIBILITY_TIMEOUT_S"])


@pytest.fixture(scope="module")
def broker(broker_of) -> Broker:
    """Redis: RabbitMQ keeps apps' messages apart by itself."""
    return broker_of("redis")


@pytest.fixture
def database(broker: Broker) -> Iterator[redis.Redis]:
    """A plain client of the shared database."""
    with redis.Redis.from_url(broker.broker_url) as client:
        yield client


def neighbour_worker(broker: Broker, folder: Path, **options: Any) -> Child:
    """Return a ready stock worker."""
    env = {"NEIGHBOUR_BROKER": broker.broker_url, "NEIGHBOUR_OPTIONS": json.dumps(options)}
    command = ["-m", "celery", "-A", "tests.e2e.neighbour", "worker", "-n", "n@x", "-c", "1", "-l", "INFO"]
    log = folder / "neighbour.log"
    child = Child("neighbour", [sys.executable, *command], log=log, env=os.environ | env)
    child.start()
    eventually(lambda: " ready." in child.log_text(), 60, "the neighbour's start")
    return child


def runs(child: Child, what: str = "succeeded") -> Counter[str]:
    """Return how often a worker logged this for each task id."""
    return Counter(re.findall(rf"\[([0-9a-f-]{{36}})\] {what}", child.log_text()))


def test_a_neighbours_messages_for_later_run_once(worker, broker: Broker, tmp_path: Path):
    """Even if they wait longer than our visibility timeout, which must not affect them."""
    neighbour = neighbour_worker(broker, tmp_path)
    app = Celery("sender", broker=broker.broker_url, set_as_current=False)
    try:
        sent = [
            app.send_task(
                "neighbour.run", (number,), queue="neighbour", countdown=VISIBILITY_TIMEOUT_S + 4
            ).id
            for number in range(3)
        ]
        eventually(lambda: runs(neighbour).keys() == set(sent), 60, "the neighbour's three runs")

        assert runs(neighbour, "received") == dict.fromkeys(sent, 1)
        assert runs(neighbour) == dict.fromkeys(sent, 1)
    finally:
        neighbour.stop()


def test_a_neighbours_sweep_does_not_requeue_our_messages(
    worker, broker: Broker, backend: Backend, database: redis.Redis, shop, sku, tmp_path: Path
):
    """Its visibility timeout is a second; our command waits longer for a lock."""
    options = {"visibility_timeout": 1, "unacked_restore_interval": 1, "unacked_restore_throttle": 1}
    neighbour = neighbour_worker(broker, tmp_path, **options)
    engine = create_engine(backend.addresses.database_url)
    try:
        with engine.begin() as lock:
            lock.execute(text("SELECT FROM products WHERE sku = :sku FOR UPDATE"), {"sku": sku})
            began = database.time()[0]
            sent = shop.send("allocate", orderid="o1", sku=sku, qty=1)
            eventually(lambda: database.llen("allocation.commands") == 0, 30)
            eventually(lambda: database.time()[0] >= began + 4, 10, "time for two sweeps")

        assert sent.get(timeout=30) == f"batch-{sku}"
        assert runs(worker, "Handled")[sent.id] == 1
    finally:
        engine.dispose()
        neighbour.stop()


def test_keys_in_the_database_show_their_owner(database: redis.Redis, worker):
    """Our keys carry the project's name; kombu's own are left to the neighbours."""
    eventually(lambda: database.exists("allocation.unacked_leases"), 30)

    assert not database.exists("unacked", "unacked_index", "unacked_leases")
