"""The log of a worker: one line for each message, as text or as JSON."""

from __future__ import annotations

import json
from typing import Any

import pytest
from sqlalchemy import create_engine, text

from allocation.service_layer.messagebus import bus
from local.waiting import eventually
from messaging.wire.replay import parse_line
from tests.e2e.conftest import Backend


@pytest.fixture(scope="module")
def broker(broker_of):
    """Redis alone: the log does not depend on the broker."""
    return broker_of("redis")


@pytest.fixture(scope="module", params=["text", "json"])
def backend(backend: Backend, request: pytest.FixtureRequest) -> Backend:
    """A backend with each format; everything is slow to it that takes longer than the first retry."""
    backend.env |= {"ALLOCATION_LOG_FORMAT": request.param, "ALLOCATION_LOG_SLOW_S": "0.5"}
    return backend


@pytest.fixture
def is_json(backend: Backend) -> bool:
    """Whether the log is JSON."""
    return backend.env["ALLOCATION_LOG_FORMAT"] == "json"


def lines_about(worker: Any, text: str, count: int = 1) -> list[str]:
    """Return the lines with a text, once there are so many."""

    def found() -> list[str] | None:
        lines = [line for line in worker.log_text().splitlines() if text in line]
        return lines if len(lines) >= count else None

    return eventually(found, 30, f"{count} lines with {text}")


def test_a_command_is_one_line_that_can_be_replayed(worker, shop, sku, is_json):
    sent = shop.send("allocate", orderid="o1", sku=sku, qty=1)
    sent.get(timeout=30)

    [line] = lines_about(worker, sent.id)
    message = json.loads(line)["message"] if is_json else line
    assert "Handled" in message
    assert message.endswith(f": 'batch-{sku}'")
    assert repr(parse_line(bus, message)) == f"Allocate(orderid='o1', sku='{sku}', qty=1)"


def test_a_refusal_is_one_line_with_its_reason(worker, shop, sku):
    sent = shop.send("allocate", orderid="o1", sku=f"no {sku}", qty=1)
    sent.get(timeout=30, propagate=False)

    [line] = lines_about(worker, sent.id)
    assert "Refused Allocate(" in line
    assert f"InvalidSku: Invalid sku no {sku}" in line


def test_a_failed_attempt_says_why(worker, shop, sku, mail_is_down, is_json):
    sent = shop.send("allocate", orderid="o2", sku=sku, qty=5)
    sent.get(timeout=30)

    lines = lines_about(worker, f"OutOfStock(sku='{sku}') with", 3)
    assert ["Failed for good" in line for line in lines] == [False, False, True]
    assert all("ConnectionRefusedError: [Errno 111] Connection refused" in line for line in lines)
    if is_json:
        last = json.loads(lines[-1])
        assert (last["log.level"], last["attempt"], last["event.outcome"]) == ("warning", 3, "failed")
        assert last["correlation.id"] == last["causation.id"] == sent.id
        assert last["delivery.id"] == last["task.id"]
        assert last["error.type"] == "ConnectionRefusedError"
        assert "in send_out_of_stock_notification" in last["error.stack_trace"]


WAITS = """
SELECT 1 FROM pg_stat_activity
WHERE wait_event_type = 'Lock' AND now() - query_start > interval '0.6 s' AND datname = current_database()
"""


def test_a_slow_message_is_a_warning(worker, backend, shop, sku):
    engine = create_engine(backend.addresses.database_url)
    with engine.begin() as lock:
        lock.execute(text("SELECT FROM products WHERE sku = :sku FOR UPDATE"), {"sku": sku})
        sent = shop.send("allocate", orderid="o3", sku=sku, qty=1)
        eventually(lambda: backend.sql(WAITS), 30, "its wait for the lock")
    engine.dispose()
    sent.get(timeout=30)

    [line] = lines_about(worker, sent.id)
    assert "with allocate slowly, in 0." in line
    assert "warning" in line.lower()


def test_every_line_is_an_object(worker, is_json):
    lines = worker.log_text().splitlines()
    begin = next(number for number, line in enumerate(lines) if "ready." in line)

    for line in lines[begin:]:
        if is_json:
            assert json.loads(line)["service.name"] == "allocation"
        else:
            assert not line.startswith("{")
