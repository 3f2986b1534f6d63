"""Task events: all arrive, several per message, including the last ones of a stopping worker."""

from __future__ import annotations

import base64
import inspect
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import redis
from celery.events.dispatcher import EventDispatcher
from celery.worker.consumer import Consumer as CeleryConsumer

from local.servers.redis_server import Redis
from local.waiting import eventually
from tests.reliable_celery.celery_fixtures.processes import OUR_CONSUMER, make_worker, running, sender


@dataclass
class Ear:
    """Receives the workers' task events, like Flower."""

    pubsub: Any
    messages: int = 0
    events: list[tuple[str, str]] = field(default_factory=list)  # (type, task id)

    def hear(self) -> None:
        """Read the events that have arrived."""
        while (message := self.pubsub.get_message(ignore_subscribe_messages=True, timeout=0.05)) is not None:
            told = json.loads(base64.b64decode(json.loads(message["data"])["body"]))
            told = [event for event in (told if isinstance(told, list) else [told]) if "uuid" in event]
            self.messages += bool(told)
            self.events += [(event["type"], event["uuid"]) for event in told]

    def has_heard(self, type_: str, task_ids: set[str]) -> bool:
        """Return whether an event of this type arrived for each of these tasks."""
        self.hear()
        return task_ids <= {task_id for kind, task_id in self.events if kind == type_}


@pytest.fixture
def ear(redis_server: Redis) -> Iterator[Ear]:
    """Listens from the start."""
    with redis.Redis.from_url(redis_server.url) as client, client.pubsub() as pubsub:
        pubsub.psubscribe("*celeryev*")
        yield Ear(pubsub)
        client.flushall()


@pytest.mark.parametrize("pool", ["prefork", "solo", "threads"])
def test_all_events_arrive_in_batches(redis_server: Redis, tmp_path: Path, ear: Ear, pool: str):
    """Three events for each of a hundred tasks, in fewer messages than half the tasks."""
    app = sender(redis_server)
    worker = make_worker(
        redis_server, tmp_path, "w", pool, worker_consumer=OUR_CONSUMER, worker_send_task_events=True
    )
    sent = {app.send_task("fixture.add", (1, n)).id for n in range(100)}

    with running(worker):
        for type_ in ("task-received", "task-started", "task-succeeded"):
            eventually(lambda type_=type_: ear.has_heard(type_, sent), 30, f"{type_} of every task")

    assert len(ear.events) == len(set(ear.events)) == 300
    assert ear.messages < 50


def test_the_last_events_of_a_worker_that_stops_arrive(redis_server: Redis, tmp_path: Path, ear: Ear):
    """SIGTERM comes while a task runs; its success is still reported."""
    app = sender(redis_server)
    worker = make_worker(
        redis_server, tmp_path, "w", "prefork", worker_consumer=OUR_CONSUMER, worker_send_task_events=True
    )
    with running(worker):
        task_id = app.send_task("fixture.mark", (1, 2.0)).id
        eventually(lambda: ear.has_heard("task-started", {task_id}), 30, "the task's begin")
        worker.stop()

    eventually(lambda: ear.has_heard("task-succeeded", {task_id}), 10, "the task's end")


def test_celery_buffers_events_as_we_know_it():
    """The batching relies on this."""
    assert "self.on_send_buffered()" in inspect.getsource(EventDispatcher.send)
    assert "_flush_events" in inspect.getsource(CeleryConsumer.on_send_event_buffered)
    assert "event_dispatcher.flush()" in inspect.getsource(CeleryConsumer._flush_events)
