"""Tasks whose messages arrived together share work; each is answered, and none suffers from another."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import redis

from local.processes.child import Child
from local.servers.redis_server import Redis
from local.waiting import eventually
from reliable_celery.errors import InvalidMessage, WorkerCrashed
from tests.paused import paused
from tests.reliable_celery.celery_fixtures.processes import (
    OUR_CONSUMER,
    make_worker,
    marks,
    running,
    sender,
    unfinished,
)
from tests.reliable_celery.test_poison import letters, supervised

pytestmark = pytest.mark.timeout(300)

SETTINGS: dict[str, Any] = {
    "worker_consumer": OUR_CONSUMER,
    "message_group_max": 4,
    "message_max_crashes": 1,
    "task_reject_on_worker_lost": True,
    "worker_prefetch_multiplier": 8,
}


@pytest.fixture(params=["solo", "prefork"])
def worker(request: pytest.FixtureRequest, redis_server: Redis, tmp_path: Path) -> Child:
    """A worker of each pool that forms groups, with one process; not started."""
    worker = make_worker(redis_server, tmp_path, "sharing", request.param, **SETTINGS)
    worker.command = [*worker.command, "-c", "1"]
    return worker


def share(server: Redis, *numbers: int, seconds: float = 0, **options: Any) -> list[Any]:
    """Send a task for each number; their group takes `seconds`."""
    app = sender(server)
    return [
        app.send_task("fixture.share", kwargs={"number": number, "seconds": seconds}, **options)
        for number in numbers
    ]


def groups(server: Redis) -> list[list[int]]:
    """Return the numbers of each group that was begun."""
    with redis.Redis.from_url(server.url_of(2)) as client:
        return [json.loads(group) for group in client.lrange("groups", 0, -1)]


def test_tasks_that_wait_are_prepared_together_and_the_rest_runs_alone(
    redis_server: Redis, broker: redis.Redis, worker: Child
):
    sent = share(redis_server, 1, 2, 3, 5, 7)
    with running(worker):
        assert [each.get(timeout=60) for each in sent] == [
            "together", "alone", "together", "together", "alone"
        ]  # fmt: skip
        eventually(lambda: unfinished(redis_server) == 0, 30, "an empty broker")

    assert groups(redis_server) == [[1, 2, 3, 5]]
    assert marks(redis_server) == {2: 1, 7: 1}


def test_the_tasks_of_a_group_that_fails_run_alone(redis_server: Redis, broker: redis.Redis, worker: Child):
    sent = share(redis_server, 0, 1, 3)
    with running(worker):
        assert [each.get(timeout=60) for each in sent] == ["alone"] * 3
        assert "A group of 3 tasks is run one by one" in worker.log_text()

    assert marks(redis_server) == {0: 1, 1: 1, 3: 1}


def test_tasks_that_run_alone_do_not_wait_for_the_next_message(
    redis_server: Redis, broker: redis.Redis, worker: Child
):
    """Each is asked for by the one before; the event loop would wait for up to a second in between."""
    with running(worker):
        share(redis_server, 2)[0].get(timeout=60)
        began = time.monotonic()
        sent = share(redis_server, *[2] * 40)
        assert [each.get(timeout=60) for each in sent] == ["alone"] * 40

    assert time.monotonic() - began < 5


@pytest.mark.parametrize("worker", ["solo"], indirect=True)
def test_a_task_that_exits_is_refused_and_none_of_its_group_with_it(
    redis_server: Redis, broker: redis.Redis, worker: Child, tmp_path: Path
):
    """They run while the last of them is received."""
    exits = sender(redis_server).send_task("fixture.share", kwargs={"number": 2, "exits": True})
    others = share(redis_server, 1, 4)
    with running(worker):
        assert [each.get(timeout=60) for each in others] == ["together", "alone"]
        with pytest.raises(InvalidMessage):
            exits.get(timeout=30)
        eventually(lambda: unfinished(redis_server) == 0, 30, "an empty broker")

    assert groups(redis_server) == [[2, 1, 4]]
    assert [letter["task_id"] for letter in letters(tmp_path)] == [exits.id]


@pytest.mark.parametrize("worker", ["solo"], indirect=True)
def test_a_task_whose_work_is_done_cannot_expire_any_more(
    redis_server: Redis, broker: redis.Redis, worker: Child
):
    with running(worker):
        with paused(worker):
            sent = share(redis_server, 1, 3, seconds=2.5, expires=2)
        assert [each.get(timeout=60) for each in sent] == ["together"] * 2

    assert groups(redis_server) == [[1, 3]]


@pytest.mark.parametrize("worker", ["prefork"], indirect=True)
def test_a_group_has_the_shortest_of_its_messages_time_limits(
    redis_server: Redis, broker: redis.Redis, worker: Child
):
    with running(worker):
        with paused(worker):
            sent = share(redis_server, 1, seconds=3) + share(redis_server, 3, time_limit=1)
        assert [each.get(timeout=60) for each in sent] == ["alone"] * 2

    assert worker.log_text().count("took longer than 1 s") == 2


@pytest.mark.parametrize("worker", ["prefork"], indirect=True)
def test_a_group_that_ends_as_the_connection_is_lost_is_left_to_the_broker(
    redis_server: Redis, broker: redis.Redis, worker: Child
):
    with running(worker):
        with paused(worker):
            sent = share(redis_server, 0, 2, seconds=1)
        eventually(lambda: groups(redis_server), what="the group")
        with paused(worker):
            broker.client_kill_filter(_type="normal", skipme=True)
            broker.client_kill_filter(_type="pubsub", skipme=True)
            eventually(lambda: "A group of 2 tasks" in worker.log_text(), what="the end of the group")
        assert [each.get(timeout=60) for each in sent] == ["alone"] * 2
        assert share(redis_server, 4)[0].get(timeout=30) == "alone"

    assert marks(redis_server) == {0: 1, 2: 1, 4: 1}


@pytest.mark.parametrize("worker", ["prefork"], indirect=True)
def test_a_worker_that_is_stopped_by_a_message_leaves_those_that_wait_to_the_broker(
    redis_server: Redis, broker: redis.Redis, worker: Child
):
    """Where a transport does not say how many have arrived, they wait for the event loop's turn."""
    assert worker.env is not None
    config = json.loads(worker.env["FIXTURE_CONFIG"])
    worker.env["FIXTURE_CONFIG"] = json.dumps({**config, "broker_transport": None})
    app = sender(redis_server)
    with running(worker):
        # A worker says that it is ready a moment before it subscribes to what is said to all of them.
        eventually(lambda: app.control.ping(timeout=1), what="an answer to a ping")
        with paused(worker):
            share(redis_server, 2)
            app.control.shutdown()
        eventually(lambda: not worker.running, 30, "the end of the worker")
        eventually(lambda: unfinished(redis_server) == 1, what="the message in the broker")

    assert marks(redis_server) == {}
    assert "Error on stopping" not in worker.log_text()


def test_only_the_task_that_kills_a_groups_worker_is_set_aside(
    redis_server: Redis, broker: redis.Redis, worker: Child, tmp_path: Path
):
    """Redelivered messages run alone, so the others are not counted with it."""
    *innocent, poison = share(redis_server, 1, 2, 3, -1)
    with supervised(worker) as revive:
        eventually(lambda: revive() and letters(tmp_path), 200, "a dead letter")
        assert [each.get(timeout=30) for each in innocent] == ["alone"] * 3
        with pytest.raises(WorkerCrashed):
            poison.get(timeout=30)
        eventually(lambda: unfinished(redis_server) == 0, 30, "an empty broker")

    assert groups(redis_server) == [[1, 2, 3, -1]]
    assert [letter["task_id"] for letter in letters(tmp_path)] == [poison.id]
    assert {number: count for number, count in marks(redis_server).items() if number > 0} == {
        1: 1,
        2: 1,
        3: 1,
    }
