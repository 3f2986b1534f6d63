"""The poison count: a message that keeps killing its workers is set aside, and its sender gets an error."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis

from local.processes.child import Child
from local.servers.redis_server import Redis
from local.waiting import eventually
from reliable_celery.errors import WorkerCrashed
from tests.reliable_celery.celery_fixtures.processes import (
    CONFIG,
    OUR_CONSUMER,
    await_ready,
    make_worker,
    marks,
    running,
    sender,
    unfinished,
)

pytestmark = pytest.mark.timeout(300)

MAX_CRASHES = 2
SETTINGS: dict[str, Any] = {
    "worker_consumer": OUR_CONSUMER,
    "message_max_crashes": MAX_CRASHES,
    "task_reject_on_worker_lost": True,
    "broker_transport_options": CONFIG["broker_transport_options"] | {"lease_s": 1},
}


@contextmanager
def supervised(worker: Child) -> Iterator[Any]:
    """Run a worker; the yielded function restarts it after it was killed."""

    def revive() -> bool:
        if not worker.running:
            worker.start()
            await_ready(worker)
        return worker.running

    with running(worker):
        yield revive


def letters(folder: Path) -> list[dict[str, Any]]:
    """Return the dead letters of the test."""
    file = folder / "letters.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pool", "whole_worker"), [("solo", False), ("threads", False), ("prefork", False), ("prefork", True)]
)
def test_a_message_that_kills_its_workers_is_set_aside_and_its_sender_gets_an_error(
    redis_server: Redis, broker: redis.Redis, tmp_path: Path, pool: str, whole_worker: bool
):
    app = sender(redis_server)
    poison = app.send_task("fixture.die", (1, whole_worker))
    worker = make_worker(redis_server, tmp_path, "mortal", pool, **SETTINGS)
    with supervised(worker) as revive:
        eventually(lambda: revive() and letters(tmp_path), 200, "a dead letter")

        with pytest.raises(WorkerCrashed, match=f"redelivered {MAX_CRASHES + 1} times"):
            poison.get(timeout=30)
        app.send_task("fixture.mark", (2,)).get(timeout=30)
        eventually(lambda: unfinished(redis_server) == 0, 30, "an empty broker")

    [letter] = letters(tmp_path)
    assert (letter["reason"], letter["task_id"]) == ("killed its worker", poison.id)
    assert json.loads(bytes.fromhex(letter["body"]))[0] == [1, whole_worker]
    assert marks(redis_server)[1] == MAX_CRASHES + 1
    assert broker.keys("*crashes*") == []


def test_a_task_that_asks_for_redelivery_is_not_counted(
    redis_server: Redis, broker: redis.Redis, tmp_path: Path
):
    app = sender(redis_server)
    with running(make_worker(redis_server, tmp_path, "patient", "prefork", **SETTINGS)):
        app.send_task("fixture.reject", (1, 6)).get(timeout=60)

        assert marks(redis_server) == {1: 6}
        assert letters(tmp_path) == []
        eventually(lambda: broker.keys("*crashes*") == [], 30, "no count left")


def test_messages_that_wait_behind_one_that_kills_its_worker_are_not_counted(
    redis_server: Redis, broker: redis.Redis, tmp_path: Path
):
    """They are redelivered as often, and were never started."""
    app = sender(redis_server)
    poison = app.send_task("fixture.die", (0, True))
    worker = make_worker(redis_server, tmp_path, "mortal", "prefork", **SETTINGS)
    worker.command = [*worker.command, "-c", "1"]
    behind = [app.send_task("fixture.mark", (number,)) for number in (1, 2, 3)]
    with supervised(worker) as revive:
        eventually(lambda: revive() and letters(tmp_path), 200, "a dead letter")
        for each in behind:
            each.get(timeout=30)

    assert [letter["task_id"] for letter in letters(tmp_path)] == [poison.id]
    assert marks(redis_server).keys() == {0, 1, 2, 3}
