"""The example kills workers under load, on stock Celery and with `reliable_celery`."""

from __future__ import annotations

import random

import pytest
import redis

from examples.plain_celery.__main__ import WORKERS, kill_under_load, opened
from local.servers.redis_server import Redis

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

KILLS = 2 * WORKERS  # per step; stock Celery loses a message at every third
MAX_KILLS = 4 * KILLS


def test_kills_that_lose_messages_on_stock_celery_lose_none_with_the_package(
    redis_server: Redis, broker: redis.Redis
):
    """Stock workers are killed until a message is lost, then as many with our settings."""
    seed = random.randrange(1_000_000)
    with opened("stock", redis_server.url) as stock:
        while stock.lost() == 0 and stock.kills < MAX_KILLS:
            kill_under_load(stock, KILLS, random.Random(seed + stock.kills))
        stock_lost = stock.lost()
        print(stock)
    with opened("reliable", redis_server.url) as ours:
        kill_under_load(ours, stock.kills, random.Random(seed))
        print(ours)

        assert ours.lost() == 0, f"seed {seed}"
    assert stock_lost > 0, f"seed {seed}: stock Celery lost nothing this time, so the test shows nothing"


def test_the_example_sets_aside_a_message_that_kills_its_workers(redis_server: Redis, broker: redis.Redis):
    with opened("reliable", redis_server.url) as ours:
        ours.send_crash()
        while not broker.llen(f"{ours.name}.dead_letters"):
            ours.employ(1)

        assert int(broker.get(f"{ours.name}.crashes")) == 3
        assert b"shop.crash" in broker.lindex(f"{ours.name}.dead_letters", 0)


def test_the_example_deletes_no_key_that_is_not_its_own(redis_server: Redis, broker: redis.Redis):
    """Its default is the machine's ordinary Redis."""
    broker.mset({"stock:prices": 1, "reliable": 1, "plain-celery-stock.paid": 1})

    with opened("stock", redis_server.url), opened("reliable", redis_server.url):
        assert sorted(broker.keys()) == [b"reliable", b"stock:prices"]
