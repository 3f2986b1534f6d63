"""What a worker tells: one line of JSON for each message, and metrics as sums over all its processes."""

from __future__ import annotations

import json
import os
import signal
import urllib.request
from collections.abc import Callable
from typing import Any

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import create_engine, text

from allocation.service_layer.messagebus import bus
from local.ports import LOOPBACK, free_port
from local.waiting import eventually
from messaging.wire.replay import parse_line
from tests.e2e.conftest import Backend


@pytest.fixture(scope="module")
def broker(broker_of):
    """Redis alone: what a worker tells does not depend on the broker."""
    return broker_of("redis")


@pytest.fixture(scope="module")
def backend(backend: Backend) -> Backend:
    """A backend that logs JSON and serves metrics; half a second is slow to it."""
    backend.env |= {
        "ALLOCATION_LOG_FORMAT": "json",
        "ALLOCATION_LOG_SLOW_S": "0.5",
        "ALLOCATION_METRICS_ADDRESS": f"{LOOPBACK}:{free_port()}",
        "TMPDIR": str(backend.folder),
    }
    return backend


@pytest.fixture
def scrape(backend: Backend) -> Callable[..., float]:
    """A function that returns the sum of a metric over the series with these labels."""

    def value(name: str, **labels: str) -> float:
        address = f"http://{backend.env['ALLOCATION_METRICS_ADDRESS']}/metrics"
        with urllib.request.urlopen(address, timeout=10) as answer:
            families = list(text_string_to_metric_families(answer.read().decode()))
        samples = [sample for family in families for sample in family.samples]
        return sum(one.value for one in samples if one.name == name and labels.items() <= one.labels.items())

    return value


def lines_about(worker: Any, text: str, count: int = 1) -> list[str]:
    """Return the lines with a text, once there are so many."""

    def found() -> list[str] | None:
        lines = [line for line in worker.log_text().splitlines() if text in line]
        return lines if len(lines) >= count else None

    return eventually(found, 30, f"{count} lines with {text}")


def test_a_command_is_one_line_that_can_be_replayed(worker, shop, sku):
    sent = shop.send("allocate", orderid="o1", sku=sku, qty=1)
    sent.get(timeout=30)

    [line] = lines_about(worker, sent.id)
    message = json.loads(line)["message"]
    assert "Handled" in message
    assert message.endswith(f": 'batch-{sku}'")
    assert repr(parse_line(bus, message)) == f"Allocate(orderid='o1', sku='{sku}', qty=1)"


def test_a_refusal_is_one_line_with_its_reason(worker, shop, sku):
    sent = shop.send("allocate", orderid="o1", sku=f"no {sku}", qty=1)
    sent.get(timeout=30, propagate=False)

    [line] = lines_about(worker, sent.id)
    assert "Refused Allocate(" in line
    assert f"InvalidSku: Invalid sku no {sku}" in line


def test_a_failed_attempt_says_why(worker, shop, sku, mail_is_down):
    sent = shop.send("allocate", orderid="o2", sku=sku, qty=5)
    sent.get(timeout=30)

    lines = lines_about(worker, f"OutOfStock(sku='{sku}') with", 3)
    assert ["Failed for good" in line for line in lines] == [False, False, True]
    assert all("ConnectionRefusedError: [Errno 111] Connection refused" in line for line in lines)
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


def test_every_line_is_an_object(worker):
    lines = worker.log_text().splitlines()
    begin = next(number for number, line in enumerate(lines) if "ready." in line)

    assert {json.loads(line)["service.name"] for line in lines[begin:]} == {"allocation"}


def test_commands_are_measured_by_outcome_over_all_processes(worker, shop, sku, scrape):
    done = scrape("allocation_command_seconds_count", command="allocation.allocate", outcome="done")
    sent = [shop.send("allocate", orderid=f"o{number}", sku=sku, qty=1) for number in range(40)]
    for each in sent:
        each.get(timeout=30)
    with pytest.raises(Exception, match="Invalid sku"):
        shop.ask("allocate", orderid="o", sku=f"no {sku}", qty=1)

    named = {"command": "allocation.allocate"}
    assert scrape("allocation_command_seconds_count", **named, outcome="done") == done + 40
    assert scrape("allocation_command_seconds_sum", **named, outcome="done") > 0
    assert scrape("allocation_refusals_total", **named, error="InvalidSku") >= 1
    assert scrape("allocation_worker_pool_size") == 2
    assert scrape("allocation_worker_busy") == 0


def test_the_time_from_sending_to_the_answer_needs_the_time_of_sending(worker, shop, sku, scrape):
    name = "allocation_command_answer_seconds_count"
    before = scrape(name)
    shop.ask("allocate", orderid="o-without", sku=sku, qty=1)
    assert scrape(name) == before

    shop.app.send_task(
        "allocation.allocate", ("o-with", sku, 1), queue="allocation.commands", declare=(),
        headers={"sent_at": 1_000_000_000},
    ).get(timeout=30)  # fmt: skip

    assert scrape(name) == before + 1


def test_attempts_of_handlers_are_measured_by_outcome(worker, shop, sku, scrape, mail_is_down):
    named = {"handler": "send_out_of_stock_notification"}
    before = {
        outcome: scrape("allocation_handler_seconds_count", **named, outcome=outcome)
        for outcome in ("retried", "failed")
    }
    started = scrape("allocation_handler_start_seconds_count", **named)
    shop.ask("allocate", orderid="o-many", sku=sku, qty=50)

    def grown(outcome: str) -> float:
        return scrape("allocation_handler_seconds_count", **named, outcome=outcome) - before[outcome]

    eventually(lambda: grown("failed") == 1, 30, "the last attempt")
    assert grown("retried") == 2
    assert scrape("allocation_handler_start_seconds_count", **named) == started + 1


def test_what_a_killed_child_has_counted_still_counts(worker, shop, sku, scrape, backend):
    """Its file is added to those of other dead children, so their number does not grow."""
    count = "allocation_command_seconds_count"
    shop.ask("allocate", orderid="o-first", sku=sku, qty=1)
    before = scrape(count)
    for number in range(3):
        for child in psutil.Process(worker.pid).children():
            os.kill(child.pid, signal.SIGKILL)
        shop.ask("allocate", orderid=f"o-{number}", sku=sku, qty=1)

    eventually(lambda: scrape(count) == before + 3, 30, "the count of all children")
    eventually(lambda: scrape("allocation_worker_busy") == 0, 30, "nothing more to do")
    assert len(list(backend.folder.glob("metrics-*/histogram_*.db"))) <= 4


def test_a_command_of_many_is_measured_by_itself(worker, shop, sku, scrape):
    before = scrape("allocation_command_seconds_count")
    lines: list[Any] = [["allocation.allocate", {"orderid": f"m{n}", "sku": sku, "qty": 1}] for n in range(5)]

    shop.ask("many", lines)

    assert scrape("allocation_command_seconds_count") == before + 5


def test_the_size_of_the_pool_is_that_of_the_moment(worker, shop, scrape):
    shop.app.control.pool_grow(1)
    eventually(lambda: scrape("allocation_worker_pool_size") == 3, 30, "another process")

    # It is refused while all of them are busy.
    eventually(lambda: "pool will shrink" in str(shop.app.control.pool_shrink(1, reply=True, limit=1)))
    eventually(lambda: scrape("allocation_worker_pool_size") == 2, 30, "one process less")
