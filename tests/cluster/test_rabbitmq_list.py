"""A list of RabbitMQ nodes: one that is away costs neither workers nor senders time."""

from __future__ import annotations

import inspect
import re
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import datetime
from functools import partial
from pathlib import Path

import pytest
from celery.worker.consumer import Consumer as CeleryConsumer
from celery.worker.consumer import delayed_delivery, mingle
from kombu import Connection
from kombu.transport import native_delayed_delivery

from allocation.client import AllocationClient
from local.ports import LOOPBACK, free_port
from local.processes.child import Child
from local.servers.redis_server import Redis
from local.waiting import eventually
from reliable_celery.farewells import FAREWELL_S, close_soon
from testing.link import Link
from testing.rabbitmq import RabbitMQ
from tests.cluster.workers import ready_worker

#: Celery's own step waits 1 + 3 + 5 s for a node that is away.
SOON_S = 6.0
#: Two missing heartbeats, 6 to 7 s, and then a new connection.
LEFT_S = 14.0


@pytest.fixture
def addresses(rabbitmq_server: RabbitMQ) -> str:
    """A node that is away, then one that is there."""
    return f"amqp://guest:guest@{LOOPBACK}:{free_port()}//;{rabbitmq_server.url}"


@pytest.fixture
def worker_on(
    redis_server: Redis, new_database: Callable[[], str], tmp_path: Path
) -> Callable[[str], AbstractContextManager[Child]]:
    """Start a worker on a list of nodes."""

    def start(addresses: str) -> AbstractContextManager[Child]:
        return ready_worker(tmp_path, env | {"ALLOCATION_BROKER_URL": addresses})

    env = {
        "ALLOCATION_DATABASE_URL": new_database(),
        "ALLOCATION_RESULT_BACKEND_URL": redis_server.url_of(1),
    }
    return start


def test_a_node_that_is_away_delays_neither_a_worker_nor_a_sender(
    worker_on: Callable[[str], AbstractContextManager[Child]], addresses: str, redis_server: Redis
):
    with (
        worker_on(addresses) as worker,
        AllocationClient(addresses, redis_server.url_of(1)) as client,
    ):
        client.create_batch("b1", "LAMP", 10)
        assert client.allocate("o1", "LAMP", 1) == "b1"

    assert _at(worker, " ready.") - _at(worker, "all alone") < SOON_S
    assert "NOT_FOUND" not in worker.log_text()


def test_a_node_that_falls_silent_is_left_by_a_worker_and_a_sender(
    worker_on: Callable[[str], AbstractContextManager[Child]],
    rabbitmq_server: RabbitMQ,
    redis_server: Redis,
):
    """The connections stay open, and nothing comes from them: a frozen node, or a cable that is cut."""
    with Link(rabbitmq_server.port) as node:
        addresses = f"amqp://guest:guest@{LOOPBACK}:{node.port}//;{rabbitmq_server.url}"
        with (
            worker_on(addresses) as worker,
            AllocationClient(addresses, redis_server.url_of(1), timeout_s=20) as client,
        ):
            client.create_batch("b1", "LAMP", 10)
            assert client.allocate("o1", "LAMP", 1) == "b1"

            node.stall()
            start = time.monotonic()

            for name in ("o2", "o3"):  # the first may still have got through
                order = partial(client.allocate, name, "LAMP", 1, key=name)
                assert eventually(order, 60, "the answer") == "b1"
            assert time.monotonic() - start < LEFT_S, worker.log_text()


def test_a_connection_to_a_silent_node_is_closed_within_a_second(rabbitmq_server: RabbitMQ):
    with Link(rabbitmq_server.port) as node:
        url = f"amqp://guest:guest@{LOOPBACK}:{node.port}//"
        connection = Connection(url, transport_options={"on_open": close_soon, "read_timeout": 20})
        connection.default_channel.queue_declare("", exclusive=True)
        node.stall()
        start = time.monotonic()

        connection.close()

        assert FAREWELL_S <= time.monotonic() - start < 2 * FAREWELL_S


def _at(worker: Child, text: str) -> float:
    """Return when the worker logged this, in Unix time."""
    found = re.search(rf"^(\S+ \S+),\d+ .*{re.escape(text)}", worker.log_text(), re.MULTILINE)
    assert found is not None, worker.log_text()
    return datetime.fromisoformat(found[1]).timestamp()


def test_celerys_greeting_is_as_we_know_it():
    """A worker that is back greets the others in the same way, and waits for less long."""
    hello = inspect.getsource(mingle.Mingle.send_hello)

    assert "control.inspect(timeout=1.0, connection=c.connection)" in hello
    assert "inspect.hello(c.hostname, our_revoked)" in hello
    assert "self.send_hello(c)" in inspect.getsource(mingle.Mingle.sync)


def test_celerys_step_for_delayed_delivery_is_as_we_know_it():
    """Ours takes its place in the list of steps, and uses its checks."""
    steps = CeleryConsumer.Blueprint.default_steps
    theirs = delayed_delivery.DelayedDelivery

    assert "celery.worker.consumer.delayed_delivery:DelayedDelivery" in steps
    assert list(inspect.signature(theirs.start).parameters) == ["self", "c"]
    assert list(inspect.signature(theirs._validate_configuration).parameters) == ["self", "app"]
    assert list(inspect.signature(CeleryConsumer.ensure_connected).parameters) == ["self", "conn"]
    assert "retry_over_time" in inspect.getsource(theirs.start)
    assert "conn.ensure_connection(" in inspect.getsource(CeleryConsumer.ensure_connected)
    # Declared last, so that its existence says that all of it was declared.
    declare = inspect.getsource(native_delayed_delivery.declare_native_delayed_delivery_exchanges_and_queues)
    assert declare.rindex("delivery_exchange.declare()") > declare.rindex("delayed_queue.bind_to")
