"""Events for other apps: written with the command, published in order, lost never."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
import redis
from kombu import Connection, Exchange, Queue, binding

import celeryconfig
from allocation.bootstrap import project
from allocation.config import Settings
from allocation.domain.commands import Allocate, ChangeBatchQuantity, CreateBatch
from allocation.domain.errors import InvalidSku
from local.ports import free_port
from local.redis import Redis
from messaging.messages import Command
from messaging.postgres.unit_of_work import CommandJob
from messaging.worker.announcements import announce
from messaging.worker.app import MessagingApp, make_app
from messaging.worker.commands import execute


@pytest.fixture
def settings(clean_database: str, redis_server: Redis) -> Settings:
    """Settings of an empty backend."""
    with redis.Redis.from_url(redis_server.url) as client:
        client.flushall()
    return Settings(_env_file=None, database_url=clean_database, broker_url=redis_server.url)


@pytest.fixture
def app(settings: Settings) -> Iterator[MessagingApp]:
    """The backend's own app, in this process."""
    yield from started(settings)


def started(settings: Settings) -> Iterator[MessagingApp]:
    """Give an app with these settings."""
    app = make_app(dataclasses.replace(project, settings=lambda: settings), celeryconfig)
    yield app
    app.close()
    app.runtime.engine.dispose()


def handle(app: MessagingApp, command: Command) -> str:
    """Handle a command as its task would; return its id."""
    task_id = str(uuid4())
    execute(app.runtime, CommandJob(task_id, command, task_id))
    return task_id


class Listener:
    """Another app's queue, bound to what it wants to hear."""

    def __init__(self, url: str, *routing_keys: str) -> None:
        exchange = Exchange("allocation.events", type="topic", durable=True)
        self._connection = Connection(url)
        bindings = [binding(exchange, routing_key=key) for key in routing_keys]
        self._queue = Queue(f"shop-{uuid4()}", bindings)(self._connection)
        self._queue.declare()

    def heard(self) -> list[dict[str, Any]]:
        """Take what arrived."""
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

    assert announce(app, app.runtime) == 1
    [event] = listener.heard()

    assert event == {
        "specversion": "1.0",
        "id": event["id"],
        "source": "/allocation",
        "type": "allocation.BatchCreated",
        "time": event["time"],
        "datacontenttype": "application/json",
        "correlationid": command_id,
        "causationid": command_id,
        "data": {"ref": "b1", "sku": "LAMP", "qty": 10, "eta": None},
    }
    assert event["time"].endswith("+00:00")


def test_every_event_is_told_once_and_in_order(app, listener):
    handle(app, CreateBatch("b1", "LAMP", 10))
    handle(app, Allocate("o1", "LAMP", 10))
    handle(app, Allocate("o2", "LAMP", 1))
    handle(app, ChangeBatchQuantity("b1", 5))

    announce(app, app.runtime)
    announce(app, app.runtime)

    told = [event["type"].removeprefix("allocation.") for event in listener.heard()]
    assert told == ["BatchCreated", "Allocated", "OutOfStock", "BatchQuantityChanged", "Deallocated"]
    assert app.runtime.announcements.count() == 0


def test_a_listener_hears_the_events_it_asked_for(app, redis_server):
    listener = Listener(redis_server.url, "OutOfStock", "Deallocated")
    handle(app, CreateBatch("b1", "LAMP", 10))
    handle(app, Allocate("o1", "LAMP", 11))

    announce(app, app.runtime)

    assert [event["data"] for event in listener.heard()] == [{"sku": "LAMP"}]


def test_more_events_than_a_batch_are_all_told(app, listener):
    for number in range(1201):
        handle(app, CreateBatch(f"b{number}", "LAMP", 1))

    assert announce(app, app.runtime) == 1201

    assert [event["data"]["ref"] for event in listener.heard()] == [f"b{number}" for number in range(1201)]


def test_a_refused_command_tells_nothing(app):
    with pytest.raises(InvalidSku):
        handle(app, Allocate("o1", "NONE", 1))

    assert app.runtime.announcements.count() == 0


def test_events_wait_for_a_broker_that_is_away(app, settings, listener):
    handle(app, CreateBatch("b1", "LAMP", 10))
    nowhere = settings.model_copy(update={"broker_url": f"redis://127.0.0.1:{free_port()}/0"})
    for lost in started(nowhere):
        with pytest.raises(Exception, match="Connection refused"):
            announce(lost, lost.runtime)

    assert app.runtime.announcements.count() == 1
    announce(app, app.runtime)
    assert len(listener.heard()) == 1


def test_only_one_process_publishes_at_a_time(app, listener):
    handle(app, CreateBatch("b1", "LAMP", 10))

    with app.runtime.announcements.take(10) as mine:
        assert announce(app, app.runtime) == 0

    assert len(mine) == 1


def test_without_a_listener_nothing_stays_in_the_broker(app, redis_server):
    handle(app, CreateBatch("b1", "LAMP", 10))

    announce(app, app.runtime)

    with redis.Redis.from_url(redis_server.url) as client:
        assert client.keys("*") == []
    assert app.runtime.announcements.count() == 0


def test_announcing_can_be_switched_off(settings):
    for silent in started(settings.model_copy(update={"announce": False})):
        handle(silent, CreateBatch("b1", "LAMP", 10))

        assert silent.runtime.announcements.count() == 0
