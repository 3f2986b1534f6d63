"""An order through a web app, whose mail fails at first: one trace, histograms, and log lines with one id."""

from __future__ import annotations

import json
import os
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from local import ROOT
from local.ports import LOOPBACK, free_port
from local.processes.child import Child
from local.waiting import eventually
from testing.collector import Collector, Span, collecting
from tests.e2e.conftest import Backend, Broker

INSTRUMENT = str(Path(sys.executable).with_name("opentelemetry-instrument"))


@pytest.fixture(scope="module")
def collector(broker: Broker) -> Iterator[Collector]:
    """A collector of traces."""
    with collecting() as collector:
        yield collector


@pytest.fixture(scope="module")
def backend(backend: Backend, collector: Collector) -> Backend:
    """A backend that tells everything that it does, and does not give up soon."""
    backend.env |= {
        "ALLOCATION_TRACES_URL": collector.url,
        "ALLOCATION_METRICS_ADDRESS": f"{LOOPBACK}:{free_port()}",
        "ALLOCATION_LOG_FORMAT": "json",
        "ALLOCATION_EVENT_MAX_RETRIES": "20",
        "OTEL_BSP_SCHEDULE_DELAY": "100",
    }
    return backend


@pytest.fixture
def traced_program(backend: Backend, collector: Collector, tmp_path: Path) -> Iterator[Any]:
    """A function that runs an example under OpenTelemetry's own instrumentation."""
    children: list[Child] = []

    def run(name: str, script: str, **more: str) -> Child:
        env = {
            "BROKER_URL": backend.addresses.broker_url,
            "RESULTS_URL": backend.addresses.result_backend_url,
            "OTEL_SERVICE_NAME": name,
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
            "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
            "OTEL_METRICS_EXPORTER": "none",
            "OTEL_LOGS_EXPORTER": "none",
            "OTEL_BSP_SCHEDULE_DELAY": "100",
            "PYTHONPATH": str(ROOT),
        }
        command = [INSTRUMENT, sys.executable, str(ROOT / "examples" / script)]
        child = Child(name, command, log=tmp_path / f"{name}.log", env={**os.environ, **env, **more})
        child.start()
        children.append(child)
        return child

    yield run
    for child in children:
        child.stop()


def post(url: str, body: dict[str, Any]) -> Any:
    """Send an order to the shop."""
    content = {"Content-Type": "application/json"}
    request = urllib.request.Request(url, json.dumps(body).encode(), content)  # noqa: S310  ours
    with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310  ours
        return json.load(answer)


def samples(backend: Backend) -> dict[str, float]:
    """Return what the worker has counted of attempts at mails, by outcome."""
    with urllib.request.urlopen(f"http://{backend.env['ALLOCATION_METRICS_ADDRESS']}/metrics") as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    return {
        sample.labels["outcome"]: sample.value
        for family in families
        for sample in family.samples
        if sample.name == "allocation_handler_seconds_count"
        and sample.labels["handler"] == "send_out_of_stock_notification"
    }


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_an_order_whose_mail_fails_is_seen_from_the_shop_to_the_mail(
    worker, housekeeping, backend, collector, traced_program, sku, tmp_path, mail_is_down
):
    port = free_port()
    queue = f"listener-{port}"
    traced_program("listener", "listener/listen.py", QUEUE=queue)
    shop = traced_program(
        "shop", "senders/fastapi_app.py", PORT=str(port), DATABASE_URL=f"sqlite:///{tmp_path}/shop.db"
    )
    eventually(lambda: "Uvicorn running" in shop.log_text(), 60, "the shop")
    before = samples(backend)

    answer = eventually(
        lambda: post(f"http://{LOOPBACK}:{port}/orders", {"orderid": "o1", "sku": sku, "qty": 5}), 30, "it"
    )
    assert answer == {"batchref": None}

    def attempts() -> list[Span]:
        return [span for span in collector.spans if span.attributes.get("bus.event") == "OutOfStock"]

    eventually(lambda: len(attempts()) >= 2, 60, "two failed attempts")
    mail_is_down.start()
    eventually(lambda: attempts()[-1].attributes["bus.outcome"] == "done", 60, "the mail")

    [trace] = {span.trace for span in attempts()}
    eventually(
        lambda: {f"process {queue}", "publish allocation.events"} <= {s.name for s in collector.of(trace)}, 60
    )
    spans = {span.id: span for span in collector.of(trace)}
    roots = [span for span in spans.values() if not span.parent]
    assert [(root.service, root.kind, root.name) for root in roots] == [("shop", "server", "POST /orders")]
    assert all(span.parent in spans for span in spans.values() if span.parent)
    assert {span.service for span in spans.values()} == {"shop", "allocation", "listener"}
    assert sku not in repr(spans)

    correlation = attempts()[0].attributes["messaging.message.conversation_id"]
    lines = [json.loads(line) for line in worker.log_text().splitlines() if correlation in line]
    assert len(lines) == 1 + len(attempts())
    assert {line["trace.id"] for line in lines} == {trace}
    assert {line["correlation.id"] for line in lines} == {correlation}
    assert [line["event.outcome"] for line in lines][-1] == "done"

    moved = {outcome: value - before[outcome] for outcome, value in samples(backend).items()}
    assert moved["done"] == 1
    assert moved["retried"] == len(attempts()) - 1 >= 2
