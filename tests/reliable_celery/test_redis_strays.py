"""Messages that a living consumer's lease would keep although the consumer does not have them."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
import redis
from kombu import Connection, Consumer, Exchange, Producer, Queue

from local.servers.redis_server import Redis
from reliable_celery.redis.fetch import FETCH
from tests.reliable_celery.celery_fixtures.processes import OUR_TRANSPORT

QUEUES = [Queue(name, Exchange(""), routing_key=name) for name in ("orders", "others")]
LEASE_S = 3

logger = logging.getLogger(__name__)


def connect(server: Redis, **options: Any) -> Connection:
    """Return a connection whose consumers hold leases."""
    options = {"lease_s": LEASE_S, "visibility_timeout": 600, "unacked_restore_throttle": 1, **options}
    connection = Connection(server.url, transport=OUR_TRANSPORT, transport_options=options)
    connection.transport.holds_leases = True
    return connection


def publish(server: Redis, *bodies: Any, queue: str = "orders") -> None:
    with Connection(server.url) as connection:
        producer = Producer(connection.default_channel)
        for body in bodies:
            producer.publish(body, exchange="", routing_key=queue, serializer="json")


@contextmanager
def consuming(connection: Connection, arrived: list[Any], **options: Any) -> Iterator[Any]:
    """Consume into `arrived`; give the channel."""
    channel = connection.channel()
    options = {"accept": ["json"], "prefetch_count": 4, **options}
    with Consumer(channel, QUEUES, on_message=arrived.append, **options):
        yield channel


def turn(connection: Connection, until: Callable[[], object], timeout: float = 20.0) -> None:
    """Turn the event loop until something holds."""
    deadline = time.monotonic() + timeout
    while not until():
        assert time.monotonic() < deadline, "not in time"
        with suppress(socket.timeout):
            connection.drain_events(timeout=0.1)


def test_a_message_that_redis_hands_out_after_the_reply_was_given_up_goes_back(
    redis_server: Redis, broker: redis.Redis, monkeypatch: pytest.MonkeyPatch
):
    """A proxy, or the kernel for a closed socket, may deliver a request late; here another socket does."""
    broker.script_load(FETCH)
    arrived: list[Any] = []
    with connect(redis_server) as connection, consuming(connection, arrived) as channel:
        turn(connection, lambda: channel.news.look_at, 5)
        kept: list[bytes] = []
        poll = channel.client.connection
        monkeypatch.setattr(poll, "send_packed_command", lambda packed, **_: kept.extend(packed))
        channel.news.look_now()
        connection.transport.cycle.on_poll_start()
        monkeypatch.undo()
        poll.disconnect()
        turn(connection, lambda: channel._trip is None and channel.news.look_at, 5)
        with socket.create_connection(("127.0.0.1", redis_server.port)) as late:
            publish(redis_server, "a", "b")
            late.sendall(b"".join(kept))
            assert late.recv(10_000)

        turn(connection, lambda: len(arrived) == 2, 4 * LEASE_S)

        assert sorted(message.payload for message in arrived) == ["a", "b"]
        for message in arrived:
            message.ack()
    assert not broker.exists("orders", "unacked", "unacked_index")


def test_a_message_whose_requeue_could_not_be_sent_goes_back_and_costs_no_place(
    redis_server: Redis, broker: redis.Redis
):
    """Celery logs that and goes on with the same connection."""
    arrived: list[Any] = []
    with (
        connect(redis_server, socket_timeout=0.5) as connection,
        consuming(connection, arrived, prefetch_count=1),
    ):
        publish(redis_server, "a")
        turn(connection, lambda: arrived)
        broker.client_pause(1500)
        arrived[0].reject_log_error(logger, connection.connection_errors, requeue=True)

        turn(connection, lambda: len(arrived) == 2, 4 * LEASE_S)

        assert (broker.hlen("unacked"), arrived[1].headers["redelivered"]) == (1, True)
        arrived[1].ack()
    assert not broker.exists("orders", "unacked", "unacked_index")


def test_a_message_that_could_not_be_left_to_nobody_goes_back(redis_server: Redis, broker: redis.Redis):
    """Its dead letter could not be recorded, just when Redis was away."""
    arrived: list[Any] = []
    with connect(redis_server, socket_timeout=0.5) as connection, consuming(connection, arrived) as channel:
        publish(redis_server, "a")
        turn(connection, lambda: arrived)
        broker.client_pause(1500)
        channel.forget(arrived[0].delivery_tag)

        turn(connection, lambda: len(arrived) == 2, 4 * LEASE_S)

        arrived[1].ack()
    assert not broker.exists("orders", "unacked", "unacked_index")


def test_a_message_that_redis_took_before_it_refused_the_trip_goes_back(
    redis_server: Redis, broker: redis.Redis
):
    """A key that is no list, behind one with a message, fails the script when that is registered."""
    arrived: list[Any] = []
    with connect(redis_server) as connection, consuming(connection, arrived) as channel:
        turn(connection, lambda: channel.news.look_at, 5)
        broker.set("others", "no list")
        publish(redis_server, "a")
        turn(connection, lambda: channel._pause_until > time.monotonic(), 10)

        assert (broker.llen("orders"), broker.hlen("unacked"), arrived) == (1, 0, [])
        broker.delete("others")
        turn(connection, lambda: arrived)
        arrived[0].ack()

    assert not broker.exists("orders", "unacked", "unacked_index")


def test_a_message_that_cannot_be_pushed_is_found_again_and_holds_up_no_other(
    redis_server: Redis, broker: redis.Redis
):
    """It goes back once its list can take it."""
    for name in ("others", "orders"):
        publish(redis_server, name, queue=name)
        raw = broker.rpop(name)
        broker.hset("unacked", name, b"[" + raw + f',"","{name}"]'.encode())
    broker.zadd("unacked_index", {"others": 1.0, "orders": 2.0})
    broker.set("others", "no list")
    with connect(redis_server, visibility_timeout=2) as connection:
        sweep = connection.default_channel.qos.restore_visible

        sweep(num=10, interval=1)

        assert (broker.llen("orders"), broker.hlen("unacked"), broker.zcard("unacked_index")) == (1, 1, 1)
        broker.delete("others")
        deadline = time.monotonic() + 15
        while not broker.llen("others"):
            assert time.monotonic() < deadline
            time.sleep(0.2)
            sweep(num=10, interval=1)

    assert not broker.exists("unacked", "unacked_index")
