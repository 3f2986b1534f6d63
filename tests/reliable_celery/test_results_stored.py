"""A message is acknowledged when its answer is stored, even if its worker has continued meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import redis
from celery import Celery, states

from local.servers.redis_server import Redis
from local.waiting import eventually
from reliable_celery.results import ResultBackend, address
from tests.reliable_celery.celery_fixtures.processes import (
    CONFIG,
    OUR_CONSUMER,
    make_worker,
    marks,
    running,
    sender,
    unfinished,
)


@pytest.fixture
def results(tmp_path: Path) -> Iterator[Redis]:
    """A separate Redis for results, since the tests break it."""
    with Redis(tmp_path / "results") as server:
        yield server


@pytest.fixture
def client(results: Redis) -> Iterator[redis.Redis]:
    """A connection to it."""
    with redis.Redis.from_url(results.url) as client:
        yield client


class Message:
    """Records the outcome of a message that waits for its answer to be stored."""

    def __init__(self) -> None:
        self.fate: list[str | type[Exception]] = []

    def acknowledge(self) -> None:
        """Record the acknowledgement."""
        self.fate.append("acknowledged")

    def give_back(self, error: Exception) -> None:
        """Record the requeue."""
        self.fate.append(type(error))


class Loop(list[Callable[[], None]]):
    """A worker's event loop that turns on demand."""

    def turn(self) -> None:
        """Run the scheduled calls."""
        while self:
            self.pop(0)()


@pytest.fixture
def loop() -> Loop:
    """The event loop."""
    return Loop()


@pytest.fixture
def backend(results: Redis, loop: Loop) -> ResultBackend:
    """The result backend of a worker whose event loop runs its tasks."""
    backend: ResultBackend = Celery("worker", backend=address(results.url), set_as_current=False).backend
    backend.confirm_later(loop.append)
    return backend


def store(backend: ResultBackend, task_id: str) -> Message:
    """Store a success, like a task that has ended, then acknowledge, like its request."""
    message = Message()
    backend.store_result(task_id, task_id, states.SUCCESS)
    assert backend.when_stored(task_id, message.acknowledge, message.give_back)
    return message


def test_the_sender_need_not_wait_until_the_worker_has_seen_the_reply(
    backend: ResultBackend, results: Redis, loop: Loop
):
    message = store(backend, "first")

    plain = Celery("sender", backend=results.url, set_as_current=False)
    assert plain.AsyncResult("first").get(timeout=10) == "first"
    assert message.fate == []
    loop.turn()
    assert message.fate == ["acknowledged"]


def test_the_next_result_settles_the_one_before(backend: ResultBackend, loop: Loop):
    first = store(backend, "first")
    second = store(backend, "second")

    assert (first.fate, second.fate) == (["acknowledged"], [])
    loop.turn()
    assert (first.fate, second.fate) == (["acknowledged"], ["acknowledged"])


def refuse(client: redis.Redis) -> None:
    """Make Redis refuse writes."""
    client.config_set("maxmemory", 1)


def accept(client: redis.Redis) -> None:
    """Make Redis accept writes again."""
    client.config_set("maxmemory", 0)


def test_only_the_message_whose_answer_redis_refuses_is_requeued(
    backend: ResultBackend, client: redis.Redis, loop: Loop
):
    before = store(backend, "before")
    refuse(client)
    refused = store(backend, "refused")
    loop.turn()
    accept(client)
    after = store(backend, "after")
    loop.turn()

    assert before.fate == after.fate == ["acknowledged"]
    assert refused.fate == [redis.exceptions.OutOfMemoryError]


def test_a_message_is_requeued_when_the_connection_ends_before_the_reply(
    backend: ResultBackend, client: redis.Redis, loop: Loop
):
    client.execute_command("CLIENT PAUSE", 60_000, "WRITE")
    message = store(backend, "unheard")
    client.client_kill_filter(_type="normal", skipme=True)
    client.client_unpause()
    loop.turn()
    after = store(backend, "after")
    loop.turn()

    assert issubclass(message.fate.pop(), redis.exceptions.ConnectionError)
    assert after.fate == ["acknowledged"]


def test_the_results_of_a_group_are_sent_when_its_last_task_has_ended(
    backend: ResultBackend, client: redis.Redis, loop: Loop
):
    with backend.together():
        messages = [store(backend, task_id) for task_id in ("first", "second")]
        assert client.keys() == []

    loop.turn()
    assert [message.fate for message in messages] == [["acknowledged"]] * 2
    assert len(client.keys("celery-task-meta-*")) == 2


def test_only_the_messages_of_a_group_whose_answers_redis_refuses_are_requeued(
    backend: ResultBackend, client: redis.Redis, loop: Loop
):
    first, second = (backend.get_key_for_task(task_id) for task_id in ("first", "second"))
    client.acl_setuser(
        "default", enabled=True, nopass=True, keys=[second], reset_keys=True
    )  # the first may not be written
    with backend.together():
        messages = [store(backend, task_id) for task_id in ("first", "second")]
    loop.turn()
    client.acl_setuser("default", enabled=True, nopass=True, keys=["*"])

    assert messages[0].fate == [redis.exceptions.NoPermissionError]
    assert messages[1].fate == ["acknowledged"]
    assert (client.exists(first), client.exists(second)) == (0, 1)


def test_every_message_of_a_group_is_requeued_when_the_connection_ends_before_the_replies(
    backend: ResultBackend, client: redis.Redis, loop: Loop
):
    client.execute_command("CLIENT PAUSE", 60_000, "WRITE")
    with backend.together():
        messages = [store(backend, task_id) for task_id in ("first", "second")]
    client.client_kill_filter(_type="normal", skipme=True)
    client.client_unpause()
    loop.turn()

    for message in messages:
        assert issubclass(message.fate.pop(), (redis.exceptions.ConnectionError, ConnectionError))


def test_only_unconfirmed_successes_are_deferred(backend: ResultBackend, loop: Loop):
    backend.store_result("failed", ValueError("no"), states.FAILURE)
    store(backend, "first")
    loop.turn()

    message = Message()
    for task_id in ("failed", "first", "unknown"):
        assert not backend.when_stored(task_id, message.acknowledge, message.give_back)
    assert message.fate == []


def test_another_message_with_the_same_id_and_no_result_does_not_replace_the_one_that_waits(
    backend: ResultBackend, loop: Loop
):
    first, second = store(backend, "same"), Message()

    assert not backend.when_stored("same", second.acknowledge, second.give_back)
    loop.turn()
    assert (first.fate, second.fate) == (["acknowledged"], [])


@pytest.mark.parametrize("pool", ["solo", "threads", "prefork"])
def test_a_worker_later_answers_messages_that_it_could_not_answer_at_first(
    redis_server: Redis, broker: redis.Redis, results: Redis, client: redis.Redis, tmp_path: Path, pool: str
):
    settings = {"result_backend": address(results.url), "worker_consumer": OUR_CONSUMER}
    worker = make_worker(redis_server, tmp_path, "w", pool, **settings)
    app = sender(redis_server)
    app.conf.result_backend = results.url
    with running(worker):
        refuse(client)
        sent = [app.send_task("fixture.add", (number, 1)) for number in range(3)]
        eventually(
            lambda: all(f"{each.id}] could not be answered" in worker.log_text() for each in sent),
            what="all three requeued",
        )
        eventually(lambda: unfinished(redis_server) == 3, what="all three in the broker")
        accept(client)

        assert [each.get(timeout=30) for each in sent] == [1, 2, 3]
        eventually(lambda: unfinished(redis_server) == 0, what="nothing left in the broker")


@pytest.mark.parametrize("pool", ["solo", "threads", "prefork"])
def test_a_worker_that_stops_leaves_no_message_to_be_redelivered(
    redis_server: Redis, broker: redis.Redis, tmp_path: Path, pool: str
):
    settings = {
        "result_backend": address(redis_server.url_of(1)),
        "worker_consumer": OUR_CONSUMER,
        "broker_transport_options": CONFIG["broker_transport_options"] | {"visibility_timeout": 600},
    }
    worker = make_worker(redis_server, tmp_path, "w", pool, **settings)
    app = sender(redis_server)
    with running(worker):
        sent = [app.send_task("fixture.mark", (number, number / 2)) for number in range(3)]
        eventually(
            # A solo worker that is told to stop between two tasks gives the next one back, as it should.
            lambda: marks(redis_server) == {0: 1, 1: 1} and worker.log_text().count("received") == 3,
            what="the slow task alone at work",
        )
        psutil.Process(worker.pid).terminate()
        eventually(lambda: not worker.running, 60, "the end of the worker")

    assert marks(redis_server) == {0: 1, 1: 1, 2: 1}
    assert [each.get(timeout=10) for each in sent] == [None] * 3
    assert unfinished(redis_server) == 0
