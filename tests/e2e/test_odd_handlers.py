"""Misbehaving handlers, and forged messages for them, in real workers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import redis

from local.processes import programs
from local.processes.child import Child
from local.service import ALLOCATION
from local.waiting import eventually
from messaging.delivery import new_id
from tests.e2e.conftest import Backend, Broker, Shop

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("odd_worker")]

INSERT = """
INSERT INTO deliveries (id, event_id, event_type, payload, handler, due_at, grace_s,
                        correlation_id, causation_id)
VALUES (:id, :id, 'OutOfStock', '{"sku": "LAMP"}', :handler, now(), 2, 'c', 'c') RETURNING 1"""


@pytest.fixture(scope="module")
def broker(broker_of: Callable[[str], Broker]) -> Broker:
    """One kind of broker is enough: it does not matter here."""
    return broker_of("redis")


@pytest.fixture(scope="module")
def odd_worker(backend: Backend) -> Iterator[Child]:
    """A worker with two processes and the misbehaving handlers."""
    odd = replace(ALLOCATION, app="tests.e2e.odd_handlers")
    child = programs.worker("odd", odd.work_queues, backend.folder, backend.env, 2, service=odd)
    child.start()
    backend.wait_for_worker(child)
    yield child
    child.stop()


def send(backend: Backend, shop: Shop, handler: str, **options: Any) -> str:
    """Send a handler the delivery of an event; `options` are the message's."""
    delivery_id = new_id()
    backend.sql(INSERT, id=delivery_id, handler=handler)
    shop.app.send_task(
        f"allocation.{handler}", task_id=delivery_id, queue="allocation.events", declare=(), **options
    )
    return delivery_id


def end_of(backend: Backend, delivery_id: str) -> tuple[Any, ...]:
    """Wait for the end of a delivery; return its state, attempts and error."""
    query = "SELECT status, attempts, last_error FROM deliveries WHERE id = :id AND status <> 'pending'"
    return eventually(lambda: next(iter(backend.sql(query, id=delivery_id)), None), 60, "an end")


@pytest.mark.parametrize(
    ("handler", "error"),
    [
        ("raise_what_cannot_be_encoded", "ValueError: \\ud800"),
        ("raise_megabytes", "ValueError: xxx"),
        ("exit_process", "SystemExit: no more"),
    ],
)
def test_a_misbehaving_handler_fails_after_its_last_attempt(
    backend: Backend, shop: Shop, handler: str, error: str
):
    status, attempts, last_error = end_of(backend, send(backend, shop, handler))

    assert (status, attempts) == ("failed", 3)  # once, and max_retries = 2
    assert last_error.startswith(error)


@pytest.mark.parametrize(
    "error",
    [
        "MemoryError",
        "Ignore",
        "Retry",
        "Reject",
        "WorkerLostError",
        "TimeLimitExceeded",
        "Terminated",
        "SoftTimeLimitExceeded",
    ],
)
def test_any_error_of_a_commands_handler_is_its_answer(
    backend: Backend, shop: Shop, odd_worker: Child, error: str
):
    """Celery's worker takes some for something else, and would end, or send no answer."""
    before = odd_worker.log_text()

    sent = shop.send("allocate", "o1", error, 1)

    with pytest.raises(Exception) as told:  # noqa: PT011  of any class
        sent.get(timeout=10)
    assert (type(told.value).__name__, sent.state) == (error, "FAILURE")
    eventually(lambda: unfinished(backend) == 0, 10, "a settled message")
    log = odd_worker.log_text()[len(before) :]
    assert log.count("Unexpected error while handling") == 1
    assert odd_worker.running
    assert backend.sql("SELECT count(*) FROM dead_letters") == [(0,)]


def unfinished(backend: Backend) -> int:
    """Return how many commands are waiting or unacknowledged."""
    with redis.Redis.from_url(backend.addresses.broker_url) as client:
        return int(client.llen("allocation.commands")) + int(client.hlen("allocation.unacked"))


@pytest.mark.parametrize("forged", [{"time_limit": 0.1}, {"soft_time_limit": 0.1}, {"expires": -60.0}])
def test_a_forged_limit_neither_kills_a_worker_nor_stops_a_delivery(
    backend: Backend, shop: Shop, odd_worker: Child, forged: dict[str, float]
):
    if "expires" in forged:
        forged = {"expires": time.time() + forged["expires"]}

    delivery_id = send(backend, shop, "take_a_second", **forged)

    assert end_of(backend, delivery_id) == ("done", 1, None)
    assert "took longer than" not in odd_worker.log_text()
