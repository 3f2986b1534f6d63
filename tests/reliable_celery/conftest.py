"""Fixtures for tests of the Redis transport with real workers."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from local.servers.redis_server import Redis


@pytest.fixture
def broker(redis_server: Redis) -> Iterator[redis.Redis]:
    """The broker's database; all databases are empty before and after the test."""
    with redis.Redis.from_url(redis_server.url) as client:
        client.flushall()
        yield client
        client.flushall()
