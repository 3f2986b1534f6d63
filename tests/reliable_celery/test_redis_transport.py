"""The Redis transport: every popped message is registered, next to stock kombu and on a failing Redis."""

from __future__ import annotations

import inspect
import json
import random
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from queue import Empty
from typing import Any

import pytest
import redis
from kombu import Connection, Consumer, Exchange, Producer, Queue
from kombu.transport import redis as stock
from kombu.transport import virtual

from local.servers.redis_server import Redis, find_binary
from local.waiting import eventually
from reliable_celery.redis.fetch import FETCH, FETCH_SHA
from tests.reliable_celery.celery_fixtures.processes import (
    OUR_TRANSPORT,
    await_ready,
    make_worker,
    marks,
    running,
    sender,
    unfinished,
)

STOCK_TRANSPORT = "redis"
QUEUE = Queue("orders", Exchange(""), routing_key="orders")
GARBAGE = [
    b"not json",
    b"\xff\x00\xfe",
    b"[1, 2]",
    b"null",
    b"{}",
    b'{"properties": []}',
    b'{"properties": {"delivery_info": 5}}',
    b'{"properties": {}, "headers": ["a"]}',
    b'{"properties": {}, "body": {"a": 1}}',
    b'{"__type__": "uuid", "__value__": 5}',
    b"[" * 100_000,
    b'",""]',
]


@pytest.fixture
def server(redis_server: Redis) -> Redis:
    """The shared Redis, emptied."""
    with redis.Redis.from_url(redis_server.url) as client:
        client.flushall()
        client.script_flush()
    return redis_server


@pytest.fixture
def own_server(server_folder: Path, tmp_path: Path) -> Iterator[Redis]:
    """A Redis that the test may break."""
    with Redis(server_folder / tmp_path.name) as own:
        yield own


@pytest.fixture
def broker(server: Redis) -> Iterator[redis.Redis]:
    """A plain client of the broker's database."""
    with redis.Redis.from_url(server.url) as client:
        yield client


def connect(server: Redis, transport: str = OUR_TRANSPORT, **options: Any) -> Connection:
    return Connection(server.url, transport=transport, transport_options=options)


def publish(connection: Connection, *bodies: Any, **options: Any) -> None:
    producer = Producer(connection.default_channel)
    for body in bodies:
        producer.publish(body, exchange="", routing_key="orders", serializer="json", **options)


def consume(
    connection: Connection,
    wanted: int,
    ack: bool = True,
    prefetch: int = 4,
    queues: Sequence[Queue] = (QUEUE,),
    **options: Any,
) -> list[Any]:
    """Consume `wanted` messages of the queues and return their bodies."""
    bodies: list[Any] = []

    def take(message: Any) -> None:
        bodies.append(message.payload)
        if ack:
            message.ack()

    channel = connection.channel()
    with Consumer(channel, queues, on_message=take, accept=["json"], prefetch_count=prefetch, **options):
        deadline = time.monotonic() + 30
        while len(bodies) < wanted and time.monotonic() < deadline:
            with suppress(socket.timeout):
                connection.drain_events(timeout=1)
    return bodies


def test_a_message_is_registered_in_stock_kombus_format(server: Redis, broker: redis.Redis):
    """Its value in `unacked` is [message, exchange, routing key], its score a time."""
    with connect(server) as connection:
        publish(connection, "a")
        raw = json.loads(broker.lindex("orders", 0))

        consume(connection, 1, ack=False)
        [(tag, value)] = broker.hgetall("unacked").items()
        [(indexed, score)] = broker.zrange("unacked_index", 0, -1, withscores=True)

    assert json.loads(value) == [raw, "", "orders"]
    assert indexed == tag
    assert abs(score - time.time()) < 60


def test_an_acknowledged_message_is_gone(server: Redis, broker: redis.Redis):
    """A handled message leaves nothing behind."""
    with connect(server) as connection:
        publish(connection, *range(10))

        assert consume(connection, 10) == list(range(10))

    assert not broker.exists("orders", "unacked", "unacked_index")


def test_closing_requeues_unacknowledged_messages(server: Redis):
    """Another consumer gets them at once, without waiting for the visibility timeout."""
    with connect(server) as connection:
        publish(connection, 1, 2, 3)
        consume(connection, 1, ack=False)

    with connect(server) as connection:
        assert sorted(consume(connection, 3)) == [1, 2, 3]


@pytest.mark.parametrize(
    ("taker", "sweeper"), [(OUR_TRANSPORT, STOCK_TRANSPORT), (STOCK_TRANSPORT, OUR_TRANSPORT)]
)
def test_stock_kombu_and_we_restore_each_other(server: Redis, broker: redis.Redis, taker: str, sweeper: str):
    """A dead consumer's message is requeued by the sweep of either."""
    with connect(server) as connection:
        publish(connection, "a")
    dead = connect(server, taker)
    consume(dead, 1, ack=False)
    broker.zadd("unacked_index", dict.fromkeys(broker.zrange("unacked_index", 0, -1), 1.0))

    with connect(server, sweeper, visibility_timeout=1) as connection:
        connection.default_channel.qos.restore_visible(interval=1)
        [waiting] = broker.lrange("orders", 0, -1)
        assert consume(connection, 1) == ["a"]

    assert json.loads(waiting)["headers"]["redelivered"] is True
    dead.release()


def test_every_priority_is_read_in_kombus_order(server: Redis):
    """Priority step 0 comes first, as in kombu."""
    with connect(server) as connection:
        for priority in 9, 6, 3, 0:
            publish(connection, priority, priority=priority)

        assert consume(connection, 4, prefetch=1) == [0, 3, 6, 9]


def test_a_long_queue_does_not_starve_another(server: Redis):
    """Queues take turns, trip by trip."""
    other = Queue("deliveries", routing_key="deliveries", no_declare=True)
    with connect(server) as connection:
        producer = Producer(connection.default_channel)
        for queue in ("orders", "deliveries"):
            for number in range(20):
                producer.publish(f"{queue} {number}", exchange="", routing_key=queue, serializer="json")

        first = consume(connection, 16, prefetch=4, queues=[QUEUE, other])

    assert {body.split()[0] for body in first[:8]} == {"orders", "deliveries"}


def test_messages_that_need_no_acknowledgement_are_not_registered(server: Redis, broker: redis.Redis):
    """For instance replies to remote control."""
    with connect(server) as connection:
        publish(connection, 1, 2, 3)

        assert consume(connection, 3, ack=False, no_ack=True) == [1, 2, 3]

        assert not broker.exists("orders", "unacked", "unacked_index")


def test_a_single_get_is_registered_too(server: Redis, broker: redis.Redis):
    """`basic_get` can lose messages in stock kombu too."""
    with connect(server) as connection:
        publish(connection, "a", "b")
        channel = connection.default_channel

        message = channel.basic_get("orders")

        assert broker.hlen("unacked") == 1
        message.ack()
        assert broker.hlen("unacked") == 0
        assert json.loads(channel.basic_get("orders", no_ack=True).body) == "b"
        assert broker.hlen("unacked") == 0
        assert channel.basic_get("orders") is None
        with pytest.raises(Empty):
            channel._get("orders")


@pytest.mark.parametrize("queue", ["orders", "orders\x06\x163", "others"])
def test_an_idle_consumer_gets_a_message_at_once(server: Redis, broker: redis.Redis, queue: str):
    """With any priority and on any of its queues; it does not wait for the next poll, a second away."""
    delays = []
    with connect(server) as connection:
        publish(connection, "template")
        raw = broker.rpop("orders")
        arrived: list[Any] = []
        queues = [QUEUE, Queue("others", Exchange(""), routing_key="others")]
        with Consumer(connection.channel(), queues, on_message=arrived.append, prefetch_count=4):
            for number in range(1, 6):
                with pytest.raises(socket.timeout):
                    connection.drain_events(timeout=0.3)
                began = time.monotonic()
                broker.lpush(queue, raw)
                while len(arrived) < number:
                    connection.drain_events(timeout=5)
                delays.append(time.monotonic() - began)
                arrived[-1].ack()

    assert sorted(delays)[2] < 0.2


@pytest.mark.parametrize("raw", GARBAGE)
def test_an_item_that_is_no_message_goes_to_the_hook_unchanged(
    server: Redis, broker: redis.Redis, raw: bytes
):
    """The messages behind it are read."""
    seen: list[tuple[str, bytes]] = []
    with connect(server) as connection:
        broker.lpush("orders", raw)
        publish(connection, "good")
        connection.transport.on_unreadable = lambda queue, item: seen.append((queue, item))

        assert consume(connection, 1) == ["good"]

    assert seen == [("orders", raw)]
    assert not broker.exists("orders", "unacked", "unacked_index")


@pytest.mark.parametrize("raw", GARBAGE)
@pytest.mark.parametrize("sweeper", [OUR_TRANSPORT, STOCK_TRANSPORT])
def test_an_item_that_cannot_be_recorded_is_redelivered_unchanged(
    server: Redis,
    broker: redis.Redis,
    raw: bytes,
    sweeper: str,
):
    """Even when a stock worker's sweep requeues it."""
    with connect(server) as connection:
        broker.lpush("orders", raw)
        publish(connection, "good")
        assert consume(connection, 1) == ["good"]
        assert broker.hlen("unacked") == 1
    broker.zadd("unacked_index", dict.fromkeys(broker.zrange("unacked_index", 0, -1), 1.0))
    with connect(server, sweeper, visibility_timeout=1) as connection:
        connection.default_channel.qos.restore_visible(interval=1)

    seen: list[bytes] = []
    with connect(server) as connection:
        publish(connection, "good")
        connection.transport.on_unreadable = lambda queue, item: seen.append(item)
        assert consume(connection, 1) == ["good"]
        assert connection.default_channel.basic_get("orders") is None

    assert seen == [raw]
    assert not broker.exists("orders", "unacked", "unacked_index")


def test_a_worker_killed_with_garbage_in_hand_does_not_stop_the_sweep(server: Redis, broker: redis.Redis):
    """Its bytes are in `unacked` without an envelope; the sweep wraps them and continues."""
    with connect(server) as connection:
        publish(connection, "good")
        good = broker.rpop("orders")
    broker.hset("unacked", mapping={"t1": b'[not json,"","orders"]', "t2": b"[" + good + b',"","orders"]'})
    broker.zadd("unacked_index", {"t1": 2.0, "t2": 1.0})

    seen: list[bytes] = []
    with connect(server, visibility_timeout=1) as connection:
        connection.default_channel.qos.restore_visible(interval=1)
        connection.transport.on_unreadable = lambda queue, item: seen.append(item)
        channel = connection.default_channel
        assert json.loads(channel.basic_get("orders", no_ack=True).body) == "good"
        assert channel.basic_get("orders") is None

    assert seen == [b"not json"]
    assert not broker.exists("orders", "unacked", "unacked_index")


def test_a_redis_without_memory_keeps_its_messages_and_hands_them_out(own_server: Redis):
    """A full Redis lets a script pop but not register; no message may be lost in between."""
    with redis.Redis.from_url(own_server.url) as client:
        with connect(own_server) as connection:
            publish(connection, "a")
            client.config_set("maxmemory", 1)

            assert consume(connection, 1, ack=False) == ["a"]

            assert (client.llen("orders"), client.hlen("unacked")) == (0, 1)
        assert (client.llen("orders"), client.hlen("unacked")) == (1, 0)
        with connect(own_server) as connection:
            assert consume(connection, 1) == ["a"]
        assert not client.exists("orders", "unacked", "unacked_index")


def test_a_prefix_for_all_keys_is_refused(server: Redis):
    """The script would mix prefixed and plain keys."""
    with (
        pytest.raises(ValueError, match="global_keyprefix"),
        connect(server, global_keyprefix="x") as connection,
    ):
        connection.default_channel.basic_get("orders")


def test_a_password_and_a_unix_socket_work(server_folder: Path):
    """Addresses are left to kombu."""
    path = server_folder / "broker.sock"
    command = [
        str(find_binary()),
        "--port",
        "0",
        "--unixsocket",
        str(path),
        "--requirepass",
        "secret",
        "--save",
        "",
    ]
    process = subprocess.Popen([*command, "--dir", str(server_folder)], stdout=subprocess.DEVNULL)
    try:
        eventually(path.exists)
        url = f"redis+socket://:secret@{path}"
        with Connection(url, transport=OUR_TRANSPORT) as connection:
            publish(connection, "a")
            assert consume(connection, 1) == ["a"]
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("pool", ["solo", "threads", "prefork"])
def test_a_worker_makes_few_round_trips(server: Redis, broker: redis.Redis, tmp_path: Path, pool: str):
    """Acknowledgements and messages share trips; no acknowledgement is left when the worker stops."""
    app = sender(server, task_ignore_result=True)
    for number in range(200):
        app.send_task("fixture.mark", (number,))
    broker.config_resetstat()
    worker = make_worker(
        server, tmp_path, "few", pool, worker_prefetch_multiplier=16, task_ignore_result=True
    )

    with running(worker):
        eventually(lambda: len(marks(server)) == 200, timeout=60)
        eventually(lambda: unfinished(server) == 0, what="acknowledgements of an idle worker")
        calls = broker.info("commandstats")
        worker.stop()

    # Redis also counts the script's calls: an HDEL is a trip with acknowledgements.
    assert calls["cmdstat_hdel"]["calls"] < 150
    assert "cmdstat_brpop" not in calls
    assert broker.hlen("unacked") == 0


@pytest.mark.parametrize("pool", ["solo", "threads", "prefork"])
def test_a_worker_survives_every_failure_of_redis(own_server: Redis, tmp_path: Path, pool: str):
    """Restarts, a flush, lost scripts, cut connections: the worker goes on working."""
    app = sender(own_server)
    worker = make_worker(own_server, tmp_path, "tough", pool)

    with running(worker), redis.Redis.from_url(own_server.url) as client:
        for mistreat in (client.script_flush, client.flushall, lambda: cut_all(client), own_server.kill):
            for _ in range(4):
                app.send_task("fixture.mark", (0, 0.2), ignore_result=True)
            mistreat()
            if not own_server.running:
                own_server.start()
            assert eventually(lambda: app.send_task("fixture.add", (1, 2)).get(timeout=30), timeout=60) == 3
            assert worker.running


def cut_all(client: redis.Redis) -> None:
    client.client_kill_filter(_type="normal", skipme=True)
    client.client_kill_filter(_type="pubsub")


def test_a_worker_that_has_messages_to_deliver_survives_the_loss_of_its_connection(
    server: Redis, broker: redis.Redis, tmp_path: Path
):
    """The rest of a batch, which it would deliver in the loop's next turn, is redelivered."""
    app = sender(server, task_ignore_result=True)
    worker = make_worker(server, tmp_path, "busy")
    with running(worker):
        for number in range(5):
            app.send_task("fixture.mark", (number, 0.3 if number else 1.0))
        eventually(lambda: not broker.llen("celery"), what="the first task, then a batch of four", every=0.01)
        cut_all(broker)

        eventually(lambda: "re-establish the connection" in worker.log_text(), 30, "a lost connection")
        eventually(lambda: not worker.running or unfinished(server) == 0, 30)
        assert worker.running
    assert marks(server).keys() == {0, 1, 2, 3, 4}


def test_a_message_of_a_workers_dead_connection_is_requeued(server: Redis, broker: redis.Redis):
    """A consumer that lost a reply with its connection requeues the reply's messages."""
    broker.script_load(FETCH)
    with connect(server) as connection:
        arrived: list[Any] = []
        channel = connection.channel()
        with Consumer(channel, [QUEUE], on_message=arrived.append, accept=["json"], prefetch_count=4):
            publish(connection, "a")
            channel.news.look_now()
            connection.transport.cycle.on_poll_start()
            eventually(lambda: broker.hlen("unacked") == 1)
            channel.client.connection.disconnect()

            connection.drain_events(timeout=30)

    assert [message.payload for message in arrived] == ["a"]


@pytest.mark.timeout(180)
@pytest.mark.slow
def test_no_message_is_lost_when_workers_are_killed_under_load(
    server: Redis, broker: redis.Redis, tmp_path: Path
):
    """Eight SIGKILLs at random moments: every message is handled, some more than once."""
    seed = random.randrange(1_000_000)
    moments = random.Random(seed)
    app = sender(server, task_ignore_result=True)
    workers = [
        make_worker(server, tmp_path, f"w{n}", pool) for n, pool in enumerate(("solo", "threads", "prefork"))
    ]
    sent = 0

    with running(*workers):
        for kill in range(8):
            with app.producer_pool.acquire() as producer, producer.batch(100):
                for _ in range(300):
                    app.send_task("fixture.mark", (sent, 0.002), producer=producer)
                    sent += 1
            time.sleep(moments.uniform(0.05, 0.25))  # kill at a random moment
            victim = workers[kill % len(workers)]
            victim.kill()
            victim.start()
            await_ready(victim)
        eventually(lambda: len(marks(server)) == sent, timeout=90, what=f"all marks (seed {seed})")
        eventually(lambda: unfinished(server) == 0, timeout=30)


def test_kombu_is_as_we_know_it():
    """A new kombu that changes what the transport relies on fails here, not in production."""
    channel, poller = stock.Channel, stock.MultiChannelPoller
    expected = {
        channel._brpop_start: "(self, timeout=None)",
        channel._brpop_read: "(self, **options)",
        channel._create_client: "(self, asynchronous=False)",
        channel._connparams: "(self, asynchronous=False)",
        channel._do_restore_message: "(self, payload, exchange, routing_key, pipe, leftmost=False)",
        channel._deliver_fanout_message: "(self, message, exchange)",
        channel._q_for_pri: "(self, queue, pri)",
        channel._basic_cancel: "(self, consumer_tag)",
        channel._disconnect_pools: "(self)",
        channel._maybe_update_queues_expire: "(self, client, queue)",
        channel.basic_consume: "(self, queue, *args, **kwargs)",
        channel.close: "(self)",
        poller.on_poll_start: "(self)",
        poller.on_readable: "(self, fileno)",
        poller.get: "(self, callback, timeout=None)",
        poller._register_BRPOP: "(self, channel)",
        poller._register_LISTEN: "(self, channel)",
        stock.QoS.append: "(self, message, delivery_tag)",
        stock.QoS.ack: "(self, delivery_tag)",
        stock.QoS.reject: "(self, delivery_tag, requeue=False)",
        stock.QoS.restore_unacked: "(self, client=None)",
        stock.QoS.restore_by_tag: "(self, tag, client=None, leftmost=False)",
        stock.QoS.restore_visible: "(self, start=0, num=10, interval=10)",
        virtual.QoS.ack: "(self, delivery_tag)",
        virtual.Channel._get_message_priority: "(self, message, reverse=False)",
        virtual.Channel.basic_get: "(self, queue, no_ack=False, **kwargs)",
        virtual.Channel.basic_consume: "(self, queue, no_ack, callback, consumer_tag, **kwargs)",
        virtual.Transport._deliver: "(self, message, queue)",
        stock.Transport.register_with_event_loop: "(self, connection, loop)",
        stock.SentinelChannel._sentinel_managed_pool: "(self, asynchronous=False)",
    }

    assert {function.__qualname__: str(inspect.signature(function)) for function in expected} == {
        function.__qualname__: signature for function, signature in expected.items()
    }


def test_kombu_calls_what_we_override():
    """An override is useless if kombu stops calling the method, or changes the names that we use."""
    source = {
        name: inspect.getsource(getattr(stock, name))
        for name in ("Channel", "QoS", "MultiChannelPoller", "Transport")
    }

    assert "channel._brpop_start()" in source["MultiChannelPoller"]
    assert "_in_poll" in source["MultiChannelPoller"]
    assert "self.connection_class_ssl" in source["Channel"]
    assert "self.connection.client.alt" in inspect.getsource(stock.SentinelChannel)
    assert "self.handlers = {'BRPOP': self._brpop_read" in source["Channel"]
    assert "add_reader(fd, on_readable, fd) for fd in cycle.fds" in source["Transport"]
    assert "dumps([message._raw, EX, RK])" in source["QoS"]
    assert "M, EX, RK = loads(" in source["QoS"]
    assert (stock.Channel.unacked_key, stock.Channel.unacked_index_key) == ("unacked", "unacked_index")


def test_redis_py_speaks_the_protocol_of_client_side_caching(broker: redis.Redis):
    """Otherwise consumers would only poll once a second, and an idle worker would answer late."""
    assert broker.connection_pool.get_connection().protocol == 3
    assert broker.script_load(FETCH) == FETCH_SHA
