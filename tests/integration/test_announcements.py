"""Events for other apps: written with the command, published in order, never lost."""

from __future__ import annotations

import dataclasses
import json
import socket
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import pytest
import redis
from kombu import Connection, Exchange, Queue, binding
from kombu.exceptions import BatchPublishError, OperationalError
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

import celeryconfig
from allocation.bootstrap import project
from allocation.config import Settings
from allocation.domain.commands import Allocate, ChangeBatchQuantity, CreateBatch
from allocation.domain.errors import InvalidSku
from allocation.domain.model import Batch
from examples.listener.listen import Memory
from local.ports import LOOPBACK, free_port
from local.servers.redis_server import Redis
from local.waiting import eventually
from messaging.messages import Command
from messaging.postgres.announcements import TAKE
from messaging.postgres.inbox import CommandJob
from messaging.worker.app import MessagingApp, make_app


@pytest.fixture
def settings(clean_database: str, redis_server: Redis) -> Settings:
    """Settings of an empty backend."""
    with redis.Redis.from_url(redis_server.url) as client:
        client.flushall()
    return Settings(_env_file=None, database_url=clean_database, broker_url=redis_server.url)


@pytest.fixture
def app(settings: Settings) -> Iterator[MessagingApp]:
    """The backend's app, in this process."""
    yield from started(settings)


def started(settings: Settings) -> Iterator[MessagingApp]:
    """Return an app with these settings."""
    app = make_app(dataclasses.replace(project, settings=lambda: settings), celeryconfig)
    yield app
    app.close()
    app.runtime.engine.dispose()


def handle(app: MessagingApp, command: Command) -> str:
    """Handle a command like its task; return its id."""
    task_id = str(uuid4())
    app.runtime.project.bus.handle(command, app.runtime.unit_of_work(CommandJob(task_id, command, task_id)))
    return task_id


class Listener:
    """Another app's queue, bound to its events."""

    def __init__(self, url: str, *routing_keys: str) -> None:
        exchange = Exchange("allocation.events", type="topic", durable=True)
        self._connection = Connection(url)
        bindings = [binding(exchange, routing_key=key) for key in routing_keys]
        self._queue = Queue(f"shop-{uuid4()}", bindings)(self._connection)
        self._queue.declare()

    def heard(self) -> list[dict[str, Any]]:
        """Return the events that arrived."""
        events = []
        while message := self._queue.get(no_ack=True, accept=["application/cloudevents+json"]):
            assert message.content_type == "application/cloudevents+json"
            events.append(json.loads(message.body))
        return events


@pytest.fixture
def listener(redis_server: Redis, settings: Settings) -> Listener:
    """A listener to every event."""
    return Listener(redis_server.url, "#")


def test_an_event_is_published_as_a_cloud_event(app, listener):
    command_id = handle(app, CreateBatch("b1", "LAMP", 10))

    assert app.dispatcher.announcer.announce() == 1
    [event] = listener.heard()

    assert event == {
        "specversion": "1.0",
        "id": event["id"],
        "source": "/allocation",
        "type": "allocation.BatchCreated",
        "subject": "LAMP",
        "sequence": event["sequence"],
        "time": event["time"],
        "datacontenttype": "application/json",
        "correlationid": command_id,
        "causationid": command_id,
        "data": {"ref": "b1", "sku": "LAMP", "qty": 10, "eta": None},
    }
    assert event["time"].endswith("+00:00")


def test_every_event_is_published_once_and_in_order(app, listener):
    handle(app, CreateBatch("b1", "LAMP", 10))
    handle(app, Allocate("o1", "LAMP", 10))
    handle(app, Allocate("o2", "LAMP", 1))
    handle(app, ChangeBatchQuantity("b1", 5))

    app.dispatcher.announcer.announce()
    app.dispatcher.announcer.announce()

    told = [event["type"].removeprefix("allocation.") for event in listener.heard()]
    assert told == ["BatchCreated", "Allocated", "OutOfStock", "BatchQuantityChanged", "Deallocated"]
    assert app.runtime.announcements.count() == 0


def test_a_listener_gets_the_events_it_is_bound_to(app, redis_server):
    listener = Listener(redis_server.url, "OutOfStock", "Deallocated")
    handle(app, CreateBatch("b1", "LAMP", 10))
    handle(app, Allocate("o1", "LAMP", 11))

    app.dispatcher.announcer.announce()

    assert [event["data"] for event in listener.heard()] == [{"sku": "LAMP"}]


def test_more_events_than_a_batch_are_all_published(app, listener):
    for number in range(1201):
        handle(app, CreateBatch(f"b{number}", "LAMP", 1))

    assert app.dispatcher.announcer.announce() == 1201

    assert [event["data"]["ref"] for event in listener.heard()] == [f"b{number}" for number in range(1201)]


def test_a_refused_command_publishes_nothing(app):
    with pytest.raises(InvalidSku):
        handle(app, Allocate("o1", "NONE", 1))

    assert app.runtime.announcements.count() == 0


def test_events_wait_for_an_unavailable_broker(app, settings, listener):
    handle(app, CreateBatch("b1", "LAMP", 10))
    nowhere = settings.model_copy(update={"broker_url": f"redis://127.0.0.1:{free_port()}/0"})
    for lost in started(nowhere):
        with pytest.raises(Exception, match="Connection refused"):
            lost.dispatcher.announcer.announce()

    assert app.runtime.announcements.count() == 1
    app.dispatcher.announcer.announce()
    assert len(listener.heard()) == 1


def test_only_one_process_publishes_at_a_time(app, listener):
    handle(app, CreateBatch("b1", "LAMP", 10))

    with app.runtime.announcements.take(10) as mine:
        assert app.dispatcher.announcer.announce() == 0

    assert len(mine) == 1


def test_without_a_listener_nothing_stays_in_the_broker(app, redis_server):
    handle(app, CreateBatch("b1", "LAMP", 10))

    app.dispatcher.announcer.announce()

    with redis.Redis.from_url(redis_server.url) as client:
        assert client.keys("*") == []
    assert app.runtime.announcements.count() == 0


def test_announcing_can_be_switched_off(settings):
    for silent in started(settings.model_copy(update={"announce": False})):
        handle(silent, CreateBatch("b1", "LAMP", 10))

        assert silent.runtime.announcements.count() == 0


def by_subject(events: list[dict[str, Any]], attribute: str) -> dict[str, list[str]]:
    """Return an attribute of each product's events, in order of arrival."""
    found = defaultdict(list)
    for event in events:
        found[event["subject"]].append(event[attribute])
    return found


def test_the_sequence_rises_with_the_commits_of_one_product_while_others_are_published(app, listener):
    """Four threads change three products while a fifth publishes."""
    skus = ("LAMP", "DESK", "SOFA")
    for sku in skus:
        handle(app, CreateBatch(f"b-{sku}", sku, 1_000_000))

    def change(thread: int) -> None:
        for number in range(40):
            handle(app, Allocate(f"{thread}-{number}", skus[number % 3], 1))

    with ThreadPoolExecutor(4) as pool:
        changes = [pool.submit(change, thread) for thread in range(4)]
        while not all(done.done() for done in changes):
            app.dispatcher.announcer.announce()
    assert [done.result() for done in changes] == [None] * 4
    app.dispatcher.announcer.announce()

    events = listener.heard()
    assert len(events) == 163
    for attribute in ("sequence", "time"):
        for values in by_subject(events, attribute).values():
            assert values == sorted(set(values))


def end_sessions(app: MessagingApp) -> None:
    """End the sessions of this database, as the server ends those of a frozen process."""
    others = "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    with app.runtime.engine.connect() as connection:
        connection.execute(
            text(f"SELECT pg_terminate_backend(pid, 10000) {others}")
        )  # waits, in milliseconds


@pytest.fixture
def frozen(settings: Settings) -> Iterator[MessagingApp]:
    """The app of a process that will be frozen, with its own database session."""
    yield from started(settings)


def test_listeners_can_drop_a_frozen_announcers_late_events_by_id_or_sequence(app, frozen, listener, memory):
    """It froze before it published, and publishes when it continues, after newer events."""
    handle(app, CreateBatch("b1", "LAMP", 10))
    handle(app, ChangeBatchQuantity("b1", 20))

    def freeze_and_go_on() -> None:
        with frozen.runtime.announcements.take(10) as old:
            end_sessions(app)
            handle(app, ChangeBatchQuantity("b1", 30))
            app.dispatcher.announcer.announce()
            frozen.dispatcher.announcer.publish(old)

    with pytest.raises(SQLAlchemyError):
        freeze_and_go_on()

    events, by_id, newest = listener.heard(), memory(), memory()

    assert [event["data"]["qty"] for event in events] == [10, 20, 30, 10, 20]
    assert [event["data"]["qty"] for event in events if not by_id.is_repeat(event)] == [10, 20, 30]
    assert [event["data"]["qty"] for event in events if not newest.is_overtaken(event)] == [10, 20, 30]


def test_the_time_of_one_products_events_never_runs_backwards(app, listener):
    """A transaction that starts before another, and changes the product after it."""
    task_id = str(uuid4())
    early = app.runtime.unit_of_work(CommandJob(task_id, CreateBatch("late", "LAMP", 1), task_id))
    with early:
        early.transaction.read("SELECT now()")
        handle(app, CreateBatch("b1", "LAMP", 10))
        early.products.get_or_create("LAMP", "late").add_batch(Batch("late", "LAMP", 1))
        early.commit()

    app.dispatcher.announcer.announce()

    events = listener.heard()
    assert [event["data"]["ref"] for event in events] == ["b1", "late"]
    assert events[0]["time"] < events[1]["time"]
    assert events[0]["sequence"] < events[1]["sequence"]


def test_an_older_releases_events_are_published_without_a_subject(app, listener, memory):
    with app.runtime.engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO announcements (event_id, event_type, payload, correlation_id, causation_id)"
                " VALUES (gen_random_uuid(), 'OutOfStock', '{\"sku\": \"LAMP\"}', 'c', 'c')"
            )
        )

    app.dispatcher.announcer.announce()

    [event] = listener.heard()
    assert "subject" not in event
    assert not memory().is_overtaken(event)


@pytest.fixture
def memory() -> Iterator[Callable[[], Memory]]:
    """A function that returns an empty memory of a listener."""
    with ExitStack() as stack:
        yield lambda: stack.enter_context(closing(Memory()))


def wait_for_timers() -> None:
    """Wait until every nudge has been sent or dropped."""
    for thread in threading.enumerate():
        if isinstance(thread, threading.Timer):
            thread.join(30)


@pytest.fixture(params=["redis_server", "rabbitmq_server"])
def hasty(request: pytest.FixtureRequest, settings: Settings) -> Iterator[MessagingApp]:
    """The app on each kind of broker; it requests an announcement right after each commit."""
    url = request.getfixturevalue(request.param).url
    yield from started(settings.model_copy(update={"broker_url": url, "announce_delay_s": 0}))


def test_requests_for_announcements_do_not_pile_up_while_housekeeping_is_down(hasty):
    queue = hasty.amqp.queues["allocation.housekeeping"]
    with hasty.connection_for_write() as connection:
        queue(connection).declare()
        queue(connection).purge()

        for _ in range(20):
            hasty.dispatcher.announcer.nudge()
            wait_for_timers()
        # RabbitMQ counts published messages with a delay.
        eventually(lambda: queue(connection).queue_declare(passive=True).message_count > 0, 10)
        asked = queue(connection).purge()
        assert 1 <= asked <= 5

        hasty.dispatcher.announcer.nudge()
        wait_for_timers()
        eventually(lambda: queue(connection).purge() == 1, 10, "the next one, once that is taken")


def test_an_announcement_is_requested_although_the_pool_has_closed_its_connection(hasty):
    queue = hasty.amqp.queues["allocation.housekeeping"]
    with hasty.connection_for_write() as connection:
        queue(connection).declare()
        queue(connection).purge()
        with hasty.producer_or_acquire() as producer:
            producer.connection.close()

        hasty.dispatcher.announcer.nudge()
        wait_for_timers()

        eventually(lambda: queue(connection).purge() == 1, 10, "the request")


@contextmanager
def front_that_cuts(url: str, after: int) -> Iterator[str]:
    """Return a proxy's address for a Redis; it closes each connection after this many bytes."""
    target = urlsplit(url)
    with socket.create_server((LOOPBACK, 0)) as server:

        def serve() -> None:
            while True:
                try:
                    client, _ = server.accept()
                except OSError:
                    return
                threading.Thread(target=pump, args=(client,), daemon=True).start()

        def pump(client: socket.socket) -> None:
            left = after
            with client, socket.create_connection((target.hostname or "", target.port or 0)) as redis_side:
                threading.Thread(target=copy, args=(redis_side, client), daemon=True).start()
                while left > 0 and (data := client.recv(min(left, 4096))):
                    redis_side.sendall(data)
                    left -= len(data)
                client.shutdown(socket.SHUT_RDWR)

        def copy(source: socket.socket, sink: socket.socket) -> None:
            try:
                while data := source.recv(65_536):
                    sink.sendall(data)
            except OSError:
                pass  # cut

        threading.Thread(target=serve, daemon=True).start()
        yield f"redis://{LOOPBACK}:{server.getsockname()[1]}{target.path}"
        server.shutdown(socket.SHUT_RDWR)


def test_publishing_500_events_makes_progress_even_if_every_connection_breaks(
    app, settings, redis_server, listener, memory
):
    """Each connection breaks after 100,000 bytes, some hundred events."""
    for number in range(500):
        handle(app, CreateBatch(f"b{number}", "LAMP", 1))

    with front_that_cuts(redis_server.url, 100_000) as url:
        for unlucky in started(settings.model_copy(update={"broker_url": url})):
            waiting = [500]
            while waiting[-1]:
                with suppress(BatchPublishError, OperationalError, redis.exceptions.ConnectionError):
                    unlucky.dispatcher.announcer.announce()
                waiting.append(app.runtime.announcements.count())
                assert waiting[-1] < waiting[-2]

    assert len(waiting) > 3
    seen = memory()
    heard = [event["data"]["ref"] for event in listener.heard() if not seen.is_repeat(event)]
    assert heard == [f"b{number}" for number in range(500)]


def test_taking_events_costs_the_same_however_many_wait(app):
    """By the primary key, before and after PostgreSQL has analysed the table."""
    fill = text(
        "INSERT INTO announcements (event_id, event_type, payload, correlation_id, causation_id)"
        " SELECT gen_random_uuid(), 'OutOfStock', '{}', 'c', 'c' FROM generate_series(1, 100000)"
    )
    with app.runtime.engine.begin() as connection:
        connection.execute(fill)
        plans = [explain(connection)]
        connection.execute(text("ANALYZE announcements"))
        plans.append(explain(connection))

    for plan in plans:
        assert "Seq Scan" not in plan
        assert 'Sort Key: "position"' not in plan.partition("InitPlan")[2]


def explain(connection: Any) -> str:
    """Return the plan of taking events."""
    rows = connection.execute(text(f"EXPLAIN {TAKE.text}"), {"limit": 160, "low": 0})
    return "\n".join(row[0] for row in rows)
