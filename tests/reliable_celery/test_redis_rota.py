"""The rota: a message wakes a few idle consumers, and a silent one keeps no message from the others."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
import redis
from kombu import Connection, Consumer, Exchange, Queue
from kombu.asynchronous import Hub

from local.servers.redis_server import Redis
from reliable_celery.redis.rota import AMONG_MANY, SEEN_S, WATCHERS
from tests.reliable_celery.celery_fixtures.processes import OUR_TRANSPORT

QUEUE = Queue("orders", Exchange(""), routing_key="orders")
SETTLE_S = 0.5


class Crowd:
    """Consumers with a connection each, in one event loop."""

    def __init__(self, url: str) -> None:
        self.url, self.hub = url, Hub()
        self.consumers: list[Consumer] = []
        self.got: list[int] = []  # the number of the consumer of each message
        self.sender = Connection(url)

    def grow(self, count: int, prefetch: int = 4) -> None:
        """Add consumers, and let them become idle."""
        for number in range(len(self.consumers), len(self.consumers) + count):
            connection = Connection(self.url, transport=OUR_TRANSPORT)
            connection.transport.holds_leases = True  # as in a worker with child processes
            consumer = Consumer(
                connection.channel(), [QUEUE], on_message=self._taker(number), prefetch_count=prefetch
            )
            consumer.consume()
            connection.register_with_event_loop(self.hub)
            self.consumers.append(consumer)
        self.turn(SETTLE_S)

    def _taker(self, number: int) -> Any:
        def take(message: Any) -> None:
            self.got.append(number)
            message.ack()

        return take

    def turn(self, seconds: float, until: int | None = None) -> float:
        """Turn the loop for so long, or until so many messages have arrived; return the time that it took."""
        start = time.monotonic()
        timer = self.hub.call_repeatedly(0.02, lambda: None)  # ends the loop's wait
        while time.monotonic() < start + seconds and (until is None or len(self.got) < until):
            self.hub.run_once()
        timer.cancel()
        return time.monotonic() - start

    def send(self, count: int = 1) -> None:
        """Send messages, as a stock app does."""
        for _ in range(count):
            self.sender.Producer().publish({}, exchange="", routing_key="orders", declare=())

    def freeze(self, tag: bytes) -> None:
        """Have a consumer do nothing any more, although its connection stays open."""
        for consumer in self.consumers:
            channel = consumer.channel
            if channel.tag_prefix.encode() == tag:
                channel.wants_trip, channel.tend_leases = lambda: False, lambda: None
                for fd in channel.connection.cycle.fds:
                    self.hub.remove_reader(fd)

    def close(self) -> None:
        """Close all connections."""
        for consumer in self.consumers:
            consumer.connection.close()
        self.sender.close()
        self.hub.close()


@pytest.fixture
def crowd(redis_server: Redis, broker: redis.Redis) -> Iterator[Crowd]:
    """An empty crowd."""
    some = Crowd(redis_server.url)
    yield some
    some.close()


def watchers(broker: redis.Redis) -> list[bytes]:
    """Return the tags of the consumers that watch."""
    found: list[bytes] = broker.zrange("unacked_rota.orders.watchers", 0, -1)
    return found


def test_a_message_wakes_a_few_idle_consumers_and_they_take_turns(crowd: Crowd, broker: redis.Redis):
    """Without a rota it would wake all thirty of them."""
    crowd.grow(30)
    assert len(watchers(broker)) <= WATCHERS
    broker.config_resetstat()

    for number in range(1, 61):
        crowd.send()
        crowd.turn(5, until=number)

    calls = broker.info("commandstats")["cmdstat_evalsha"]["calls"]
    assert len(crowd.got) == 60
    assert calls / 60 < 6
    assert max(Counter(crowd.got).values()) <= 6
    assert len(Counter(crowd.got)) >= 20


def test_a_consumer_leaves_the_event_loop_with_its_connection(crowd: Crowd):
    """A worker whose server refuses everything connects again and again, for hours."""
    for _ in range(5):
        crowd.grow(1)
        crowd.consumers.pop().connection.close()

    assert not crowd.hub.on_tick


def test_more_messages_than_the_watchers_can_take_wake_more_consumers(crowd: Crowd):
    """They do not wait for the next look."""
    crowd.grow(20, prefetch=1)

    crowd.send(20)

    assert crowd.turn(5, until=20) < 0.9
    assert len(set(crowd.got)) >= 8


def test_a_frozen_watcher_is_replaced(crowd: Crowd, broker: redis.Redis):
    """The sleepers look from time to time; then a message arrives at once again."""
    crowd.grow(6)
    for tag in watchers(broker):
        crowd.freeze(tag)
    crowd.send()

    assert crowd.turn(5, until=1) < 1.5

    crowd.turn(SEEN_S + 1.5)
    crowd.send()
    assert crowd.turn(5, until=2) < 0.5


def test_a_watcher_that_stops_wakes_another(crowd: Crowd, broker: redis.Redis):
    """Nobody waits for its place to expire."""
    crowd.grow(6)
    for tag in watchers(broker):
        next(one for one in crowd.consumers if one.channel.tag_prefix.encode() == tag).cancel()
    crowd.turn(0.2)
    assert len(watchers(broker)) >= AMONG_MANY

    crowd.send()

    assert crowd.turn(5, until=1) < 0.5


def test_a_flushed_redis_gets_a_new_rota(crowd: Crowd, broker: redis.Redis):
    """The sleepers notice that their bells are gone."""
    crowd.grow(10)
    broker.flushall()
    crowd.turn(2.5)
    assert AMONG_MANY <= len(watchers(broker)) <= WATCHERS

    crowd.send()

    assert crowd.turn(5, until=1) < 0.5
