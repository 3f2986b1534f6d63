"""The package's stores for dead letters return what was added."""

from __future__ import annotations

from pathlib import Path

import pytest
import redis
from celery import Celery
from celery.exceptions import ImproperlyConfigured, NotRegistered

from local.servers.redis_server import Redis
from local.waiting import eventually
from reliable_celery.dead_letters import DeadLetter
from reliable_celery.stores import JsonLines, RedisList, store_of
from tests.reliable_celery.celery_fixtures.processes import OUR_CONSUMER, make_worker, running, sender

LETTER = DeadLetter("unknown task", "no such task", b"\x00\xff", "shop.pay", "id-1", headers={"a": ["é"]})


def app_with(server: Redis, **settings: object) -> Celery:
    """Return an app on that broker."""
    app = Celery("shop", broker=server.url, set_as_current=False)
    app.conf.update(settings)
    return app


def test_a_list_in_the_broker_is_the_default(redis_server: Redis, broker: redis.Redis):
    with app_with(redis_server) as app:
        store = store_of(app)
        store.add(LETTER)
        store.add(LETTER)

        assert isinstance(store, RedisList)
        assert list(store.letters()) == [LETTER, LETTER]
        assert broker.llen("dead_letters") == 2


def test_a_full_redis_takes_a_letter(server_folder: Path, tmp_path: Path):
    """Its message leaves Redis next."""
    with (
        Redis(server_folder / tmp_path.name) as own,
        redis.Redis.from_url(own.url) as client,
        app_with(own) as app,
    ):
        client.config_set("maxmemory", 1)
        store_of(app).add(LETTER)

        assert client.llen("dead_letters") == 1


def test_a_file_keeps_letters(redis_server: Redis, tmp_path: Path):
    path = tmp_path / "letters.jsonl"
    with app_with(
        redis_server, dead_letter_store="reliable_celery.stores:JsonLines", dead_letter_file=str(path)
    ) as app:
        store = store_of(app)
        store.add(LETTER)
        store.add(LETTER)

        assert isinstance(store, JsonLines)
        assert list(store.letters()) == [LETTER, LETTER]
        assert path.stat().st_mode & 0o077 == 0


def test_a_line_that_was_cut_off_takes_no_other_letter_with_it(redis_server: Redis, tmp_path: Path):
    """By a disk that was full, or a worker that was killed while it wrote."""
    path = tmp_path / "letters.jsonl"
    with app_with(redis_server, dead_letter_file=str(path)) as app:
        store = JsonLines(app)
        store.add(LETTER)
        with path.open("ab") as file:
            file.write(b'{"reason": "unknown ta')
        store.add(LETTER)
        store.add(LETTER)

        assert list(store.letters()) == [LETTER] * 3


def test_another_broker_needs_a_store_that_is_named():
    app = Celery("shop", broker="amqp://127.0.0.1", set_as_current=False)

    with pytest.raises(ImproperlyConfigured, match="dead_letter_store"):
        store_of(app)


def test_a_worker_with_only_our_consumer_stores_letters_in_the_broker(
    redis_server: Redis, broker: redis.Redis, tmp_path: Path
):
    """With Celery's own transport and pool, nothing else set."""
    worker = make_worker(
        redis_server,
        tmp_path,
        "w",
        worker_consumer=OUR_CONSUMER,
        dead_letter_store="reliable_celery.stores:RedisList",
        broker_transport=None,
        worker_pool="prefork",
    )
    with running(worker):
        with pytest.raises(NotRegistered):
            sender(redis_server).send_task("no.such").get(timeout=60)

        eventually(lambda: broker.llen("dead_letters") == 1, 30, "the dead letter")
