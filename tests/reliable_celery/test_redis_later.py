"""Messages with a future ETA, and wrong clocks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import redis
from kombu import Connection, Consumer, Exchange, Producer, Queue

from local.processes.child import Child
from local.servers.redis_server import Redis
from local.waiting import eventually
from tests.chaos.clock import Clock, can_be_built
from tests.programs import missing
from tests.reliable_celery.celery_fixtures.processes import (
    CONFIG,
    OUR_CONSUMER,
    OUR_TRANSPORT,
    make_worker,
    marks,
    running,
    sender,
    unfinished,
)

VISIBILITY_TIMEOUT_S = 2
MANY = 60  # more than three times a worker's prefetch


@pytest.fixture
def compiler() -> None:
    """Skip the test if its clock library cannot be built."""
    if not can_be_built():
        missing("cc", "a C compiler on Linux, such as Debian's package build-essential")


@pytest.fixture
def own_server(server_folder: Path, tmp_path: Path) -> Iterator[Redis]:
    """A Redis that the test may fill."""
    with Redis(server_folder / tmp_path.name) as own:
        yield own


@pytest.mark.parametrize("pool", ["solo", "threads", "prefork"])
def test_many_messages_for_later_do_not_delay_due_ones(
    redis_server: Redis, broker: redis.Redis, tmp_path: Path, pool: str
):
    """This happens when a mail server is down and many retries wait."""
    app = sender(redis_server)
    with running(make_worker(redis_server, tmp_path, "patient", pool, worker_consumer=OUR_CONSUMER)):
        for number in range(MANY):
            app.send_task("fixture.mark", (number,), countdown=600, ignore_result=True)
        eventually(lambda: broker.hlen("unacked") == MANY, 30, "all that is for later in the worker")

        for _ in range(20):
            assert app.send_task("fixture.add", (1, 2)).get(timeout=10) == 3


@pytest.mark.parametrize("pool", ["solo", "prefork"])
def test_messages_that_wait_longer_than_the_visibility_timeout_are_not_redelivered(
    redis_server: Redis, broker: redis.Redis, tmp_path: Path, pool: str
):
    """Their worker is alive."""
    app = sender(redis_server)
    options = CONFIG["broker_transport_options"] | {"visibility_timeout": VISIBILITY_TIMEOUT_S, "lease_s": 4}
    workers = [
        make_worker(
            redis_server, tmp_path, name, pool, worker_consumer=OUR_CONSUMER, broker_transport_options=options
        )
        for name in ("first", "second")
    ]
    with running(*workers):
        app.send_task("fixture.mark", (1,), countdown=3 * VISIBILITY_TIMEOUT_S + 0.5, ignore_result=True)
        eventually(lambda: marks(redis_server) == {1: 1}, 30, "the mark")
        eventually(lambda: unfinished(redis_server) == 0, 10)
        received = sum(worker.log_text().count("] received") for worker in workers)

    assert received == 1
    assert marks(redis_server) == {1: 1}


@pytest.mark.parametrize("priority", ["1e999", "-1e999", "NaN", '"high"'])
def test_a_message_for_later_with_a_priority_that_is_none_is_handled(
    redis_server: Redis, broker: redis.Redis, tmp_path: Path, priority: str
):
    """It has kombu's default priority, also when it is requeued."""
    sender(redis_server).send_task("fixture.mark", (1,), countdown=1, ignore_result=True)
    item = broker.rpop("celery")
    assert item.count(b'"priority": 0') == 1
    broker.lpush("celery", item.replace(b'"priority": 0', f'"priority": {priority}'.encode()))
    with Connection(redis_server.url, transport=OUR_TRANSPORT) as connection:
        connection.default_channel.basic_get("celery").requeue()
    assert unfinished(redis_server) == broker.llen("celery") == 1

    worker = make_worker(redis_server, tmp_path, "calm", worker_consumer=OUR_CONSUMER)
    with running(worker):
        eventually(lambda: marks(redis_server) == {1: 1}, 30, "the mark")
        eventually(lambda: unfinished(redis_server) == 0, 10)
        assert worker.running


def test_a_worker_whose_clock_is_ahead_takes_nothing_from_the_others(
    compiler: None, redis_server: Redis, broker: redis.Redis, tmp_path: Path
):
    """Redis' clock decides which messages are overdue, not a worker's."""
    app = sender(redis_server)
    clock = Clock(tmp_path)
    clock.jump_to(3600)
    options = CONFIG["broker_transport_options"] | {"visibility_timeout": 60}
    right, ahead = (
        make_worker(redis_server, tmp_path, name, "prefork", broker_transport_options=options)
        for name in ("right", "ahead")
    )
    ahead.env = {**(ahead.env or {}), **clock.environment()}
    with running(right), running(ahead):
        for number in range(4):
            app.send_task("fixture.mark", (number, 1.5), ignore_result=True)
        eventually(lambda: unfinished(redis_server) == 0, 30)

    assert marks(redis_server) == dict.fromkeys(range(4), 1)


def test_a_message_for_later_whose_queue_is_something_else_holds_up_no_other(
    redis_server: Redis, broker: redis.Redis, tmp_path: Path
):
    """The text of that name may be another app's; its message is kept."""
    app = sender(redis_server)
    with running(make_worker(redis_server, tmp_path, "calm", worker_consumer=OUR_CONSUMER)):
        app.send_task("fixture.mark", (1,), countdown=600, ignore_result=True)
        eventually(lambda: broker.zcard("unacked_later") == 1, 30, "the message")
        [entry] = broker.zrange("unacked_later", 0, 0)
        broker.set("text", "of another app")
        broker.zrem("unacked_later", entry)
        broker.zadd("unacked_later", {entry.replace(b" celery", b" text"): 1})

        app.send_task("fixture.mark", (2,), countdown=1.5, ignore_result=True)

        eventually(lambda: marks(redis_server) == {2: 1}, 30, "the other one")
    assert broker.zcard("unacked_later") == 1


def resident_mib(worker: Child) -> float:
    """Return the memory of a worker's main process."""
    return psutil.Process(worker.pid).memory_info().rss / 2**20


def test_large_messages_for_later_cost_a_worker_no_memory(
    redis_server: Redis, broker: redis.Redis, tmp_path: Path
):
    """A hundred messages of 0.9 MB, due in an hour, wait in Redis, and due messages are handled meanwhile."""
    app = sender(redis_server)
    worker = make_worker(redis_server, tmp_path, "patient", "prefork", worker_consumer=OUR_CONSUMER)
    with running(worker):
        assert app.send_task("fixture.add", (1, 2)).get(timeout=30) == 3
        before = resident_mib(worker)
        for _ in range(100):
            app.send_task("fixture.add", ("x" * 900_000, "y"), countdown=3600, ignore_result=True)
        eventually(lambda: broker.zcard("unacked_later") == 100, 60, "all of them put off")

        assert app.send_task("fixture.add", (1, 2)).get(timeout=10) == 3
        grown = resident_mib(worker) - before

    assert grown < 60


@pytest.mark.parametrize("pool", ["solo", "threads", "prefork"])
def test_a_retry_is_not_held_up_by_other_messages_for_later(
    redis_server: Redis, broker: redis.Redis, tmp_path: Path, pool: str
):
    """Whatever their number: they take no places in the worker."""
    app = sender(redis_server, task_ignore_result=True)
    with running(make_worker(redis_server, tmp_path, "patient", pool, worker_consumer=OUR_CONSUMER)):
        for number in range(500):
            app.send_task("fixture.mark", (number,), countdown=3600)
        app.send_task("fixture.mark", (1000,), countdown=1)

        eventually(lambda: marks(redis_server) == {1000: 1}, 20, "the one that is due")


def test_a_message_for_later_survives_its_worker(redis_server: Redis, broker: redis.Redis, tmp_path: Path):
    """No worker held it when its worker was killed: the next one gets it in time and unchanged."""
    app = sender(redis_server, task_ignore_result=True)
    first, second = (
        make_worker(redis_server, tmp_path, name, "prefork", worker_consumer=OUR_CONSUMER)
        for name in ("first", "second")
    )
    with running(first):
        app.send_task("fixture.mark", (1,), countdown=4)
        eventually(lambda: broker.zcard("unacked_later") == 1, 30)
        first.kill()
    eventually(lambda: broker.zcard("unacked_leases") == 1, 5)
    with running(second):
        eventually(lambda: marks(redis_server) == {1: 1}, 20, "the mark")
        eventually(lambda: unfinished(redis_server) == 0, 10)

    assert not broker.exists("unacked_later")


def test_a_message_that_was_put_off_is_requeued_unchanged(redis_server: Redis, broker: redis.Redis):
    """Bytes and priority are the same; it is not marked as redelivered, since nobody had started it."""
    queue = Queue("orders", Exchange(""), routing_key="orders")
    with Connection(redis_server.url, transport=OUR_TRANSPORT) as connection:
        Producer(connection.default_channel).publish(
            {"ü": 1}, exchange="", routing_key="orders", serializer="json", priority=6
        )
        [raw] = broker.lrange("orders\x06\x166", 0, -1)
        taken: list[Any] = []
        channel = connection.channel()
        with Consumer(channel, [queue], on_message=taken.append, accept=["json"], prefetch_count=1):
            connection.drain_events(timeout=10)
            [message] = taken

            assert channel.put_off(message, broker.time()[0] - 1) is False
            assert channel.put_off(message, broker.time()[0] + 2) is True
            assert not broker.exists("orders\x06\x166", "unacked_index")
            channel.give_back_due()
            assert not broker.exists("orders\x06\x166")
            eventually(lambda: channel.give_back_due() or broker.exists("orders\x06\x166"), 10)

            assert broker.lrange("orders\x06\x166", 0, -1) == [raw]
            assert not broker.exists("unacked", "unacked_later")


def test_a_message_for_later_on_a_full_redis_runs_in_time(own_server: Redis, tmp_path: Path):
    """It is moved, and needs no extra room."""
    app = sender(own_server, task_ignore_result=True)
    with redis.Redis.from_url(own_server.url) as broker:
        worker = make_worker(own_server, tmp_path, "late", "prefork", worker_consumer=OUR_CONSUMER)
        sent = app.send_task("fixture.add", (1, 2), countdown=2, ignore_result=True)
        broker.config_set("maxmemory", 1)
        with running(worker):
            eventually(lambda: f"{sent.id}] succeeded" in worker.log_text(), 30, "the run")
            eventually(lambda: unfinished(own_server) == 0, 10)
