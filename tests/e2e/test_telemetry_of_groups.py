"""Commands that share a transaction: each has its own trace, times and line."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import pytest

from local.ports import LOOPBACK, free_port
from local.processes import programs
from local.processes.child import Child
from local.waiting import eventually
from testing.collector import Collector, Span, collecting
from tests.e2e.conftest import Backend, Broker, Shop
from tests.e2e.test_groups import TRANSACTIONS, failing_order, paused

pytestmark = pytest.mark.timeout(200)


@pytest.fixture(scope="module")
def broker(broker_of: Callable[[str], Broker]) -> Broker:
    """Redis: what a group tells does not depend on the broker."""
    return broker_of("redis")


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    """A collector of traces for this file."""
    with collecting() as collector:
        yield collector


@pytest.fixture(scope="module", params=["solo", "prefork"])
def worker(request: pytest.FixtureRequest, backend: Backend, collector: Collector) -> Iterator[Child]:
    """A worker of each pool that forms groups, and tells everything."""
    backend.env |= {
        "ALLOCATION_TRACES_URL": collector.url,
        "OTEL_BSP_SCHEDULE_DELAY": "100",
        "ALLOCATION_METRICS_ADDRESS": f"{LOOPBACK}:{free_port()}",
        "ALLOCATION_LOG_FORMAT": "json",
        "ALLOCATION_GROUP_MAX": "8",
    }
    name = f"telling-{request.param}"
    worker = programs.worker(
        name, programs.WORK_QUEUES, backend.folder, backend.env, 1, f"--pool={request.param}"
    )
    worker.start()
    backend.wait_for_worker(worker)
    yield worker
    worker.stop()


def lines_of(worker: Child, sent: list[Any]) -> list[dict[str, Any]]:
    """Return the line about each message, in their order."""

    def found() -> list[str] | None:
        lines = [line for one in sent for line in worker.log_text().splitlines() if f"[{one.id}" in line]
        return lines if len(lines) >= len(sent) else None

    return [json.loads(line) for line in eventually(found, 30, "a line for each message")]


def spans_of(collector: Collector, sent: Any, *kinds: str) -> dict[str, Span]:
    """Return an order's spans by their kind, once it has those of these kinds."""

    def found() -> dict[str, Span] | None:
        own = [
            span
            for span in collector.spans
            if span.attributes.get("messaging.message.conversation_id") == sent.id
        ]
        spans = {f"{span.kind} {span.attributes.get('bus.kind', '')}".strip(): span for span in own}
        return spans if spans.keys() >= {*kinds} else None

    return eventually(found, 30, f"the spans {kinds}")


def test_each_order_of_a_group_has_its_own_trace_and_the_time_that_it_took(
    worker: Child, backend: Backend, shop: Shop, collector: Collector
) -> None:
    """The commit takes long; one order has a trace from its sender, the other ones have not."""
    skus = [f"{letter}-{uuid4()}" for letter in "ABC"]
    for sku in skus:
        shop.ask("create_batch", ref=f"batch-{sku}", sku=sku, qty=1)
    slow = f"order-{uuid4()}"
    headers = {"traceparent": f"00-{uuid4().hex}-{'b' * 16}-01"}
    with failing_order(backend, slow, "PERFORM pg_sleep(1.1)"):
        with paused(worker):
            sent = [
                shop.app.send_task(
                    "allocation.allocate", (orderid, sku, quantity), queue="allocation.commands", declare=(),
                    headers=headers if orderid == "traced" else {},
                )
                for orderid, sku, quantity in zip((slow, "traced", "plain"), skus, (1, 5, 5), strict=True)
            ]  # fmt: skip
        for one in sent:
            one.get(timeout=30)
    assert backend.sql(TRANSACTIONS, ids=[one.id for one in sent]) == [(1, 3)]

    lines = lines_of(worker, sent)
    assert ["slowly, in 1." in line["message"] for line in lines] == [True] * 3
    spans = [spans_of(collector, sent[0], "consumer command")]
    steps = ("consumer command", "producer", "consumer delivery")
    spans += [spans_of(collector, one, *steps) for one in sent[1:]]
    commands = [of_one["consumer command"] for of_one in spans]
    assert [span.seconds > 1.1 for span in commands] == [True] * 3
    assert [span.trace for span in commands] == [line["trace.id"] for line in lines]
    assert [span.trace == headers["traceparent"][3:35] for span in commands] == [False, True, False]
    for of_one in spans[1:]:
        assert of_one["producer"].parent == of_one["consumer command"].id
        assert of_one["consumer delivery"].parent == of_one["producer"].id
        assert of_one["producer"].began > of_one["consumer command"].began + 1

    [group] = {link for span in commands for link in span.links}
    shared = eventually(
        lambda: [span for span in collector.of(group) if span.name.endswith("; COMMIT")], 10, "the commit"
    )
    assert shared[0].seconds > 1.1
    assert headers["traceparent"][3:35] in {link for span in collector.of(group) for link in span.links}


def test_the_commands_of_a_message_stay_in_its_trace_in_a_group(
    worker: Child, shop: Shop, collector: Collector
) -> None:
    sku = f"LAMP-{uuid4()}"
    shop.ask("create_batch", ref=f"batch-{sku}", sku=sku, qty=1)
    lines = [["allocation.allocate", {"orderid": f"m{n}", "sku": sku, "qty": 1}] for n in range(3)]

    sent = shop.send("many", lines)
    sent.get(timeout=30)

    whole = spans_of(collector, sent, "consumer batch", "consumer command", "producer", "consumer delivery")
    assert len({span.trace for span in whole.values()}) == 1
    assert whole["consumer command"].parent == whole["consumer batch"].id
    of_commands = {
        s.id for s in collector.of(whole["producer"].trace) if s.attributes.get("bus.kind") == "command"
    }
    assert whole["producer"].parent in of_commands
