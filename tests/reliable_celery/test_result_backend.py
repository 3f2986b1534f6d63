"""The result backend writes the same keys and values as Celery's own, and relies on some of its internals."""

import inspect
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from celery import Celery, states
from celery.app.trace import build_tracer
from celery.backends.redis import RedisBackend

from local.servers.redis_server import Redis
from reliable_celery.requests import RESULTS_ARE_AWAY
from reliable_celery.results import ResultBackend, address


@pytest.fixture
def worker(redis_server: Redis) -> Celery:
    """An app with our backend."""
    return Celery("worker", backend=address(redis_server.url_of(5)), set_as_current=False)


@pytest.fixture
def sender(redis_server: Redis) -> Celery:
    """An app with Celery's."""
    return Celery("sender", backend=redis_server.url_of(5), set_as_current=False)


@pytest.fixture
def client(redis_server: Redis) -> Iterator[redis.Redis]:
    """The results' database, emptied at the end."""
    with redis.Redis.from_url(redis_server.url_of(5)) as client:
        yield client
        client.flushdb()


def test_celery_takes_the_class_from_the_address(worker: Celery):
    """A class path, a plus sign and the plain address."""
    assert type(worker.backend) is ResultBackend


@pytest.mark.parametrize("url", ["db+postgresql://h/d", "rpc://"])
def test_an_address_that_is_not_redis_stays_unchanged(url: str):
    """Other backends are left to Celery."""
    assert address(url) == url


def test_a_redis_socket_is_addressed_as_in_celery(tmp_path):
    """Celery removes `redis+` before its backend sees the address."""
    assert address("redis+socket:///run/redis.sock").endswith(":ResultBackend+socket:///run/redis.sock")


@pytest.mark.filterwarnings(
    "ignore:Call to deprecated setex:DeprecationWarning"
)  # called by Celery's own backend
def test_a_plain_sender_reads_the_result(worker: Celery, sender: Celery, client: redis.Redis):
    """The value is the one that Celery would have written, and it expires."""
    worker.backend.store_result("id-1", {"a": 1}, states.SUCCESS)
    ours = client.get("celery-task-meta-id-1")
    sender.backend.store_result("id-2", {"a": 1}, states.SUCCESS)
    theirs = client.get("celery-task-meta-id-2")

    assert sender.AsyncResult("id-1").get(timeout=10) == {"a": 1}
    assert sorted(worker.backend.decode(ours)) == sorted(sender.backend.decode(theirs))
    assert 0 < client.ttl("celery-task-meta-id-1") <= 86400


def test_a_result_is_announced_to_waiting_senders(worker: Celery, client: redis.Redis):
    """The announcement is the result itself, on the channel of its key."""
    with client.pubsub(ignore_subscribe_messages=True) as ear:
        ear.subscribe("celery-task-meta-id-3")
        ear.get_message(timeout=10)

        worker.backend.store_result("id-3", 7, states.SUCCESS)

        heard = ear.get_message(timeout=10)
    assert heard is not None
    assert heard["data"] == client.get("celery-task-meta-id-3")


def test_a_late_failure_does_not_hide_a_success(worker: Celery, sender: Celery, client: redis.Redis):
    """Only a success skips reading the stored result."""
    worker.backend.store_result("id-4", "kept", states.SUCCESS)

    worker.backend.store_result("id-4", ValueError("late"), states.FAILURE)

    assert sender.AsyncResult("id-4").get(timeout=10) == "kept"


def test_an_answer_that_could_not_be_stored_is_not_replaced_by_a_storage_error(
    worker: Celery, client: redis.Redis, monkeypatch: pytest.MonkeyPatch
):
    """After a short outage of Redis, Celery would store the storage error as the task's."""
    pool = worker.backend.client.connection_pool
    connect, away = pool.get_connection, [redis.exceptions.ConnectionError("away")]
    monkeypatch.setattr(pool, "get_connection", lambda *a: _raise(away.pop()) if away else connect(*a))

    @worker.task(name="answers", shared=False)
    def answers() -> None:
        raise ValueError("the task's own")

    with pytest.warns(RuntimeWarning, match="Exception raised outside body"):
        traced = build_tracer("answers", answers, app=worker)("id-5", (), {}, {"id": "id-5"})

    assert not away
    assert client.get("celery-task-meta-id-5") is None
    # This tells the worker's main process to have the message redelivered.
    assert traced.retval.internal
    assert isinstance(traced.retval.exception.exc, RESULTS_ARE_AWAY)


def _raise(error: Exception) -> Any:
    raise error


def test_celery_stores_results_as_we_know_it():
    """Review a new Celery that stores results in another way before pinning it."""
    source = inspect.getsource(RedisBackend._store_result)
    assert list(inspect.signature(RedisBackend._set).parameters) == ["self", "key", "value", "expires"]
    for part in ("_get_result_meta(", "meta['task_id']", "_set_with_state(", "BackendStoreError"):
        assert part in source
