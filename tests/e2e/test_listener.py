"""Another app that receives events, with the listener of the examples."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from allocation.service_layer.messagebus import bus
from examples.listener.listen import KINDS
from local import ROOT
from local.processes.child import Child
from local.waiting import eventually

pytestmark = pytest.mark.usefixtures("worker", "housekeeping")


@pytest.fixture
def listener(broker, server_folder: Path) -> Iterator[Callable[..., Child]]:
    """A function that starts the listener with the test's own queue."""
    children: list[Child] = []
    folder = Path(tempfile.mkdtemp(prefix="listener-", dir=server_folder))
    env = {**os.environ, "BROKER_URL": broker.broker_url, "QUEUE": f"shop-{uuid4()}"}

    def listen(*arguments: str, **more: str) -> Child:
        command = [sys.executable, "examples/listener/listen.py", *arguments]
        child = Child("listener", command, log=folder / "listener.log", env={**env, **more}, cwd=ROOT)
        child.start()
        children.append(child)
        return child

    yield listen
    for child in children:
        child.stop()
    forget = listen("--forget")
    eventually(lambda: not forget.running, what="the end of the queue")


def events(child: Child) -> list[dict[str, Any]]:
    """Return the listener's output since its start."""
    return [json.loads(line) for line in child.log_text().splitlines() if line.startswith("{")]


def told(child: Child, sku: str) -> list[str]:
    """Return the types of the events about a product."""
    return [
        event["type"].removeprefix("allocation.") for event in events(child) if event["data"]["sku"] == sku
    ]


def wait_until_it_listens(listen, shop, *kinds: str) -> Child:
    """Start a listener and wait until it receives events."""
    child = listen(*kinds)
    eventually(
        lambda: shop.ask("create_batch", ref=str(uuid4()), sku="READY?", qty=1) or events(child),
        60,
        "the listener's first event",
        every=0.5,
    )
    return child


def test_a_listener_gets_every_event_about_stock(shop, listener):
    sku = f"LAMP-{uuid4()}"
    child = wait_until_it_listens(listener, shop)

    shop.ask("create_batch", ref=f"b-{sku}", sku=sku, qty=10)
    shop.ask("allocate", orderid="o1", sku=sku, qty=10)
    shop.ask("allocate", orderid="o2", sku=sku, qty=1)
    shop.ask("change_batch_quantity", ref=f"b-{sku}", qty=1)

    # Reallocating the deallocated line fails: the second OutOfStock.
    expected = [
        "BatchCreated",
        "Allocated",
        "OutOfStock",
        "BatchQuantityChanged",
        "Deallocated",
        "OutOfStock",
    ]
    eventually(lambda: told(child, sku) == expected, 30, "every event, in order")
    [first, *_] = [event for event in events(child) if event["data"]["sku"] == sku]
    assert (first["specversion"], first["source"]) == ("1.0", "/allocation")


def test_a_listener_gets_what_it_missed_while_it_was_down(shop, listener):
    sku = f"LAMP-{uuid4()}"
    wait_until_it_listens(listener, shop, "BatchCreated", "OutOfStock").stop()

    shop.ask("create_batch", ref=f"b-{sku}", sku=sku, qty=1)
    for number in range(5):
        shop.ask("allocate", orderid=f"o{number}", sku=sku, qty=2)

    child = listener("BatchCreated", "OutOfStock")
    eventually(lambda: told(child, sku) == ["BatchCreated", *["OutOfStock"] * 5], 30, "what was missed")


def test_an_event_that_does_not_exist_is_refused_with_the_names_of_those_that_do(listener):
    child = listener("OutOfStok")

    eventually(lambda: not child.running, what="its end")
    assert child.exit_code == 2
    assert "no event is called 'OutOfStok'; there are Allocated, BatchCreated" in child.log_text()


def test_the_listener_knows_the_events_of_the_contract():
    assert set(KINDS) == set(bus.event_types)


def test_a_listener_reports_that_its_broker_does_not_answer(listener, free_port):
    child = listener("OutOfStock", BROKER_URL=f"redis://127.0.0.1:{free_port}/0")

    eventually(lambda: "The broker does not answer" in child.log_text(), what="a line about it")
