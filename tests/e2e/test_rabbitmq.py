"""RabbitMQ only: quorum queues, confirms, a dead-letter exchange, delays in the broker, TLS."""

from __future__ import annotations

import os
import ssl
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from celery import Celery
from celery.utils.nodenames import gethostname
from kombu import Connection
from kombu.transport.native_delayed_delivery import calculate_routing_key

from local.ports import free_port
from local.processes.child import ROOT
from local.waiting import eventually
from messaging.brokers import tls, topology
from messaging.delivery import new_id
from testing.rabbitmq import RabbitMQ
from tests.e2e.certificates import make_pair
from tests.e2e.conftest import Backend


@pytest.fixture(scope="module")
def broker(rabbitmq_server, broker_of):
    """RabbitMQ alone."""
    return broker_of("rabbitmq")


def operate(backend: Backend, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the operator's tool."""
    command = [sys.executable, "-m", "allocation", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env={**os.environ, **backend.env}, capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip


def test_the_queues_are_quorum_queues(worker, broker):
    ours = topology.task_queue("allocation", "allocation.commands", broker.broker_url).queue_arguments
    classic = {name: value for name, value in ours.items() if name != "x-queue-type"}
    with (
        Connection(broker.broker_url) as connection,
        connection.channel() as channel,
        pytest.raises(connection.channel_errors, match="x-queue-type"),
    ):
        channel.queue_declare("allocation.commands", durable=True, auto_delete=False, arguments=classic)


def test_a_worker_says_how_it_stands(worker, shop):
    """For Flower's page of the worker; an answer that cannot be sent costs the worker its control queue."""
    node = f"commands@{gethostname()}"

    stats = (shop.app.control.inspect([node], timeout=20).stats() or {}).get(node, {})

    assert stats["pool"]["max-concurrency"] == 2
    assert "amqp" in stats["broker"]["transport"]
    assert "transport_options" not in stats["broker"]
    assert "Control command error" not in worker.log_text()


def test_a_message_that_is_rejected_becomes_a_dead_letter(worker, housekeeping, broker, backend, shop):
    worker.stop()
    sent = shop.send("allocate", "o1", "LAMP", 1)
    with Connection(broker.broker_url) as connection, connection.channel() as channel:
        queue = topology.task_queue("allocation", "allocation.commands", broker.broker_url)(channel)
        eventually(lambda: queue.get(), what="the message").reject()

    shop.app.send_task("allocation.collect_dead_letters", queue="allocation.housekeeping", declare=())

    letter = eventually(
        lambda: backend.sql("SELECT reason, error, task, task_id, queue FROM dead_letters"),
        what="the dead letter",
    )
    assert letter == [
        (
            "set aside by the broker",
            "RabbitMQ set it aside: rejected",
            "allocation.allocate",
            sent.id,
            "allocation.commands",
        )
    ]
    worker.start()
    backend.wait_for_worker(worker)


def test_a_retry_waits_in_the_broker(worker, broker, shop):
    """A countdown goes to a queue of delays, not into a worker's memory."""
    with Celery(broker=broker.broker_url, set_as_current=False) as app:
        queue = topology.task_queue("allocation", "allocation.events", broker.broker_url)
        app.conf.task_queues = [queue]
        app.send_task("allocation.reallocate", queue="allocation.events", countdown=60)

    # 2 to the power of 5 is the highest bit of 60.
    eventually(lambda: broker.waiting("celery_delayed_5") == 1, what="the retry in a queue of delays")


def test_a_message_delayed_by_the_broker_runs_at_once(worker, broker, shop):
    """Even if the sender's clock is an hour ahead: many such messages would block a worker for an hour."""
    key = calculate_routing_key(1, "allocation.commands")
    with Celery(broker=broker.broker_url, set_as_current=False) as app:
        for number in range(40):
            app.send_task(
                "allocation.create_batch",
                (f"late-{number}", "LATE", 1, None),
                exchange="celery_delayed_27", routing_key=key, declare=(),
                eta=datetime.now(UTC) + timedelta(hours=1),
            )  # fmt: skip

        assert shop.ask("create_batch", ref="batch-after", sku="LATE", qty=1) is None
        eventually(lambda: worker.log_text().count("ref='late-") >= 40, 60, "all that was late")


@pytest.fixture(scope="module")
def tls_server(rabbitmq_installed: None, server_folder: Path) -> Iterator[tuple[RabbitMQ, str, Path]]:
    """A RabbitMQ with TLS, its address, and the authority that signed its certificate."""
    pair, port = make_pair(server_folder / "tls", "rabbitmq"), free_port()
    config = f"""
listeners.ssl.1 = 127.0.0.1:{port}
ssl_options.cacertfile = {pair.certificate}
ssl_options.certfile = {pair.certificate}
ssl_options.keyfile = {pair.key}
ssl_options.verify = verify_none
"""
    with RabbitMQ(server_folder / "rabbitmq-tls", config=config) as server:
        yield server, f"amqps://guest:guest@127.0.0.1:{port}//", pair.certificate


def connect(url: str, ca_file: Path) -> bool:
    """Connect as the backend does."""
    with Celery(broker=url, set_as_current=False) as app:
        app.conf.update(tls.settings(url, "", ca_file))
        with app.connection_for_write(heartbeat=0) as connection:
            connection.connect()
            return bool(connection.connected)


@pytest.mark.timeout(300)
def test_tls_checks_the_servers_certificate(tls_server, server_folder):
    _, url, authority = tls_server
    stranger = make_pair(server_folder / "tls-stranger", "stranger")

    assert connect(url, authority)
    with pytest.raises(ssl.SSLCertVerificationError):
        connect(url, stranger.certificate)


@pytest.mark.xfail(strict=True, reason="RabbitMQ drops it, and nobody answers its sender")
@pytest.mark.long
def test_a_sender_gets_expired_for_a_command_that_expired_in_the_queue(worker, housekeeping, broker, shop):
    """Celery passes `expires` on to RabbitMQ, which then drops the message before a worker sees it."""
    options = {"queue": "allocation.commands", "declare": (), "expires": 0.1}
    worker.stop()
    sent = shop.app.send_task("allocation.allocate", ("o1", "LAMP", 1), **options)
    eventually(lambda: broker.waiting("allocation.commands") == 0, what="its expiry")
    worker.start()

    assert type(sent.get(timeout=20, propagate=False)).__name__ == "Expired"


def test_a_delayed_message_that_became_a_dead_letter_is_replayed_to_its_queue(worker, broker, backend):
    """Its routing key begins with its delay; RabbitMQ drops messages for a queue of such a name."""
    key = calculate_routing_key(1, "allocation.commands")
    with Celery(broker=broker.broker_url, set_as_current=False) as app:
        app.send_task(
            "allocation.later", task_id="later", exchange="celery_delayed_27", routing_key=key, declare=()
        )
    letters = "SELECT id::text, queue FROM dead_letters WHERE task_id = 'later' ORDER BY at"
    [(letter_id, queue)] = eventually(lambda: backend.sql(letters), 30, "the dead letter")
    assert queue == "allocation.commands"

    replayed = operate(backend, "dead-letters", "replay", "--anyway", letter_id)

    assert (replayed.returncode, replayed.stderr) == (0, "")
    eventually(lambda: len(backend.sql(letters)) == 2, 30, "its next refusal")


def test_a_dead_letter_from_no_queue_of_the_project_is_not_replayed(worker, backend):
    backend.sql(
        "INSERT INTO dead_letters (id, reason, error, queue, task, headers, properties, body) VALUES"
        " (:id, 'unknown task', '', 'gone', 'allocation.allocate', '{}', '{}', '') RETURNING 1",
        id=(letter_id := new_id()),
    )

    replayed = operate(backend, "dead-letters", "replay", letter_id)

    assert (replayed.returncode, "gone, which is not a queue of this project" in replayed.stdout) == (1, True)
    assert backend.sql("SELECT replayed_at FROM dead_letters WHERE queue = 'gone'") == [(None,)]


def test_expired_runs_of_housekeeping_are_no_dead_letters(worker, broker, backend, shop):
    """After an hour without a housekeeping worker there would be more than a thousand of them."""
    options = {"queue": "allocation.commands", "declare": (), "expires": 0.1}
    worker.stop()
    for job in ("relay", "announce", "rerun", "prune", "unheard_of"):
        shop.app.send_task(f"allocation.{job}", task_id=f"run of {job}", **options)
    with Connection(broker.broker_url) as connection, connection.Producer() as producer:
        for forged in "expired", [7], [{"reason": 7}]:  # by somebody who may write to every queue
            producer.publish({}, routing_key="allocation.dead", headers={"x-death": forged})
    eventually(lambda: broker.waiting("allocation.commands") == 0, what="their expiry")
    worker.start()
    backend.wait_for_worker(worker)

    shop.app.send_task("allocation.collect_dead_letters", queue="allocation.commands", declare=())

    letters = "SELECT task_id FROM dead_letters WHERE task_id LIKE 'run of%'"
    eventually(lambda: backend.sql(letters), 30, "the dead letter")
    eventually(lambda: broker.waiting("allocation.dead") == 0, 30, "the end of the collection")
    assert backend.sql(letters) == [("run of unheard_of",)]


def test_a_compressed_body_is_refused_unread(worker, broker, shop):
    """Unpacked, a few kilobytes can be more than all memory."""
    sent = shop.app.send_task(
        "allocation.allocate", ("o1", "LAMP", 1), queue="allocation.commands", declare=(), compression="gzip"
    )

    error = sent.get(timeout=30, propagate=False)

    assert (type(error).__name__, "compressed" in str(error)) == ("InvalidMessage", True)


def test_a_body_in_an_encoding_that_unpacks_is_refused_unread(worker, broker, shop):
    """Kombu decodes what has no serializer, by any of Python's encodings."""
    headers = {"task": "allocation.allocate", "id": new_id()}
    with Connection(broker.broker_url) as connection, connection.Producer() as producer:
        producer.publish(
            b"packed", exchange="allocation.commands", routing_key="allocation.commands", headers=headers,
            content_type="application/data", content_encoding="bz2",
        )  # fmt: skip

    error = shop.app.AsyncResult(headers["id"]).get(timeout=30, propagate=False)

    assert (type(error).__name__, "body must be JSON" in str(error)) == ("InvalidMessage", True)


class Far(datetime):
    """A time in the year 2739876, which AMQP can express."""

    def utctimetuple(self) -> Any:
        return 1970, 1, 10**9, 0, 0, 0


class Farther(datetime):
    """A time in the year 2739726029, which the C library takes for an error of the system."""

    def utctimetuple(self) -> Any:
        return 1970, 1, 10**12, 0, 0, 0


def nested(depth: int) -> dict[str, Any]:
    """Return a table with as many tables in it."""
    table: dict[str, Any] = {}
    for _ in range(depth):
        table = {"a": table}
    return table


@pytest.fixture
def deep() -> Iterator[None]:
    """The sender writes what our workers cannot read."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(20_000)
    yield
    sys.setrecursionlimit(before)


@pytest.mark.parametrize("queue", ["allocation.commands", "allocation.dead"])
@pytest.mark.parametrize(
    "unreadable",
    [
        {"headers": {"at": Far(2000, 1, 1)}},
        {"headers": {"at": Farther(2000, 1, 1)}},
        {"headers": nested(1500)},
        {"message_id": b"\xff"},
    ],
    ids=["time", "later time", "depth", "text"],
)
def test_a_message_whose_properties_cannot_be_read_ends_no_worker(
    worker, broker, backend, shop, deep, unreadable, queue
):
    """RabbitMQ passes on what py-amqp refuses to read."""
    sku = new_id()
    with Connection(broker.broker_url) as connection, connection.Producer() as producer:
        producer.publish(sku, routing_key=queue, serializer="json", **unreadable)

    if queue == "allocation.dead":
        shop.app.send_task("allocation.collect_dead_letters", queue="allocation.commands", declare=())

    found = "SELECT headers::text FROM dead_letters WHERE body = convert_to(:body, 'UTF8')"
    assert eventually(lambda: backend.sql(found, body=f'"{sku}"'), 30, "the dead letter") == [("{}",)]
    assert shop.ask("create_batch", ref=f"b-{sku}", sku=sku, qty=1) is None
    assert worker.running


def test_what_cannot_be_read_on_the_dead_letter_queue_is_recorded_too(worker, broker, backend, shop):
    """Behind it no other dead letter would ever be recorded."""
    expired = {"x-death": [{"reason": "expired"}]}
    with Connection(broker.broker_url) as connection, connection.Producer() as producer:
        for headers in {"compression": "unheard-of"}, {**expired, "task": {"a": 1}}, {"task": "the.last"}:
            producer.publish({}, routing_key="allocation.dead", headers=headers)

    shop.app.send_task("allocation.collect_dead_letters", queue="allocation.commands", declare=())

    last = "SELECT id FROM dead_letters WHERE task = 'the.last'"
    eventually(lambda: backend.sql(last), 30, "the dead letter")
    eventually(lambda: broker.waiting("allocation.dead") == 0, 30, "the end of the collection")
    found = "SELECT count(*) FROM dead_letters WHERE body = convert_to('{}', 'UTF8')"
    assert backend.sql(found) >= [(3,)]
