"""What the tests of the Redis transport with real workers share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from local.servers.redis_server import Redis


@pytest.fixture
def broker(redis_server: Redis) -> Iterator[redis.Redis]:
    """The broker's database, with nothing in any before the test and after it."""
    with redis.Redis.from_url(redis_server.url) as client:
        client.flushall()
        yield client
        client.flushall()
