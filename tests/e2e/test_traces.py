"""One trace from a sender's span to the last handler and announcement, across processes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from local import ROOT
from local.processes import programs
from local.waiting import eventually
from testing.collector import Collector, Span, collecting
from tests.e2e.conftest import Backend


@pytest.fixture(scope="module")
def broker(broker_of):
    """Redis; test_see_what_happens.py has both brokers."""
    return broker_of("redis")


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    """A collector of traces for this file."""
    with collecting() as collector:
        yield collector


@pytest.fixture(scope="module")
def backend(backend: Backend, collector: Collector) -> Backend:
    """A backend whose processes are traced, and export soon."""
    backend.env |= {"ALLOCATION_TRACES_URL": collector.url, "OTEL_BSP_SCHEDULE_DELAY": "100"}
    return backend


def run(backend: Backend, *arguments: str) -> str:
    """Run a program with the backend's settings and return its output."""
    command = [sys.executable, "-m", *arguments]
    env = {**os.environ, **backend.env}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def send_order(backend: Backend, sku: str, *how: str) -> str:
    """Have a traced app send an order that no batch has room for; return the trace's id."""
    return run(backend, "tests.e2e.traced_sender", sku, *how)


def wait_for(collector: Collector, trace: str, *names: str) -> dict[str, Span]:
    """Return the spans of a trace by name, once it has those of these names."""

    def found() -> dict[str, Span] | None:
        spans = {span.name: span for span in collector.of(trace)}
        return spans if spans.keys() >= {*names} else None

    return eventually(found, 30, f"{names} among {[span.name for span in collector.of(trace)]}")


def handled(collector: Collector, trace: str) -> list[Span]:
    """Return the attempts of handlers in a trace, the first one first: two processes export them."""
    spans = [span for span in collector.of(trace) if span.name == "process allocation.events"]
    return sorted(spans, key=lambda span: span.began)


def chain(collector: Collector, span: Span) -> list[str]:
    """Return the names from a span up to the first of its trace, once all have arrived."""

    def found() -> list[str] | None:
        by_id = {each.id: each for each in collector.of(span.trace)}
        names, above = [span.name], span
        while above.parent:
            if above.parent not in by_id:
                return None
            above = by_id[above.parent]
            names.append(above.name)
        return names

    return eventually(found, 10, f"the spans above {span.name}")


COMMAND = ["process allocation.commands", "send allocation.commands", "checkout"]


def test_one_trace_leads_from_the_sender_to_handlers_and_announcements(
    worker, housekeeping, backend, collector, sku
):
    trace = send_order(backend, sku)

    sql = "INSERT announcements; INSERT deliveries; INSERT inbox; COMMIT"
    done = "UPDATE deliveries; COMMIT"
    spans = wait_for(collector, trace, "publish allocation.events", "process allocation.events", sql, done)
    assert chain(collector, spans[sql]) == [sql, *COMMAND]
    assert chain(collector, spans[done]) == [
        done,
        "process allocation.events",
        "send allocation.events",
        *COMMAND,
    ]
    assert chain(collector, spans["publish allocation.events"]) == ["publish allocation.events", *COMMAND]
    assert {span.service for span in spans.values()} == {"shop", "allocation"}
    assert spans["process allocation.events"].attributes["bus.event"] == "OutOfStock"
    assert not [span for span in spans.values() if span.failed]


def test_no_payload_is_in_a_trace(worker, housekeeping, backend, collector, sku):
    trace = send_order(backend, sku)

    spans = wait_for(collector, trace, "publish allocation.events", "process allocation.events")

    assert sku not in repr(spans)


def test_every_attempt_is_in_the_trace_and_a_rerun_is_a_new_one_with_a_link(
    worker, housekeeping, backend, collector, sku, mail_is_down
):
    trace = send_order(backend, sku)
    eventually(lambda: len(handled(collector, trace)) == 3, 30, "three attempts")
    assert [span.attributes["bus.outcome"] for span in handled(collector, trace)] == [
        "retried", "retried", "failed",
    ]  # fmt: skip
    assert {span.attributes["error.type"] for span in handled(collector, trace)} == {"ConnectionRefusedError"}

    mail_is_down.start()
    correlation = handled(collector, trace)[0].attributes["messaging.message.conversation_id"]
    run(backend, "allocation", "deliveries", "rerun", "--correlation", correlation, "--wait", "30")

    def rerun() -> list[Span]:
        return [span for span in collector.spans if trace in span.links and span.kind == "consumer"]

    [again] = eventually(rerun, 30, "the re-run's span")
    assert again.trace != trace
    assert again.attributes["bus.outcome"] == "done"
    assert [span.name for span in collector.of(again.trace) if span.kind == "producer"] == [
        "send allocation.events"
    ]


def test_a_delivery_whose_message_was_lost_stays_in_its_trace(
    worker, housekeeping, backend, broker, collector, sku
):
    """The row has the trace, and the relay sends the message again."""
    worker.stop()
    deaf = backend.worker("deaf", queues="allocation.commands")
    trace = send_order(backend, sku)
    deaf.stop()
    assert broker.waiting("allocation.events") == 1
    broker.lose("allocation.events")
    worker.start()

    [attempt] = eventually(lambda: handled(collector, trace), 60, "the delivery")
    assert attempt.attributes["bus.outcome"] == "done"


def test_commands_sent_together_are_parts_of_their_message(worker, backend, collector, sku):
    trace = send_order(backend, sku, "--many")

    spans = wait_for(collector, trace, "process allocation.events")

    kinds = [span.attributes["bus.kind"] for span in collector.of(trace) if span.name == COMMAND[0]]
    assert sorted(kinds) == ["batch", "command", "command"]
    assert chain(collector, spans["process allocation.events"])[-2:] == COMMAND[-2:]


def test_a_sender_cannot_break_the_worker_with_its_headers(worker, shop, sku):
    for nonsense in (1, ["x"], "00-0-0-0", {"a": 1}, "00-" + "0" * 32 + "-" + "0" * 16 + "-01", None):
        headers = {"traceparent": nonsense, "sent_at": nonsense}
        sent = shop.app.send_task(
            "allocation.allocate", (f"o-{nonsense}", sku, 0), queue="allocation.commands", declare=(),
            headers=headers,
        )  # fmt: skip
        with pytest.raises(Exception, match="qty must be at least 1"):
            sent.get(timeout=30)


@pytest.mark.slow
def test_a_collector_that_is_away_keeps_nobody_waiting(worker, backend, shop, sku, free_port):
    """Neither senders, nor the tool, nor a worker that stops."""
    env = {**backend.env, "ALLOCATION_TRACES_URL": f"http://127.0.0.1:{free_port}"}
    worker.stop()
    lonely = programs.worker("lonely", programs.WORK_QUEUES, backend.folder, env, 1)
    lonely.start()
    backend.wait_for_worker(lonely)

    began = time.monotonic()
    for number in range(20):
        shop.ask("allocate", orderid=f"away-{number}", sku=sku, qty=5)
    answered = time.monotonic()
    run(replace(backend, env=env), "allocation", "allocate", "away", sku, "1")
    said = time.monotonic()
    lonely.stop()
    stopped = time.monotonic()

    assert (answered - began < 20, said - answered < 20, stopped - said < 20) == (True, True, True)
    worker.start()
    backend.wait_for_worker(worker)
