"""Messages larger than a worker's memory: they become dead letters, and end no worker."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from kombu import Connection

from local.processes.child import Child
from local.servers.redis_server import Redis
from local.waiting import eventually
from reliable_celery.letters import MAX_KEPT_BYTES
from reliable_celery.redis.fetch import FETCH, ending_of
from tests.reliable_celery.celery_fixtures.processes import (
    CONFIG,
    OUR_CONSUMER,
    OUR_TRANSPORT,
    make_worker,
    running,
    sender,
    unfinished,
)
from tests.reliable_celery.test_dead_letter_consumer import envelope
from tests.reliable_celery.test_redis_transport import publish

SIZE = 64 * 2**20


@pytest.fixture
def own_server(server_folder: Path, tmp_path: Path) -> Iterator[Redis]:
    """A Redis whose memory is given back at the end."""
    with Redis(server_folder / tmp_path.name) as own:
        yield own


def peak_mib(worker: Child) -> float:
    """Return the most memory that a worker's main process has had."""
    status = Path(f"/proc/{worker.pid}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024


@pytest.mark.long
def test_a_message_larger_than_any_valid_one_is_recorded_in_part_and_never_read(
    own_server: Redis, tmp_path: Path
):
    """Nor is one that a worker held when it was killed. Both are kept if they cannot be recorded at first."""
    large, refuse = envelope(b"x" * (SIZE // 4 * 3)), tmp_path / "letters.refuse"
    app = sender(own_server)
    options = CONFIG["broker_transport_options"] | {"visibility_timeout": 5}
    worker = make_worker(
        own_server, tmp_path, "small", worker_consumer=OUR_CONSUMER, broker_transport_options=options
    )
    with running(worker), redis.Redis.from_url(own_server.url, socket_timeout=60) as broker:
        broker.config_set("appendonly", "no")
        assert app.send_task("fixture.add", (1, 2)).get(timeout=30) == 3
        before = peak_mib(worker)
        refuse.touch()
        broker.hset("unacked", "dead.1.1", b"[" + large + ending_of("celery").encode())
        broker.zadd("unacked_index", {"dead.1.1": 1})
        broker.lpush("celery", large)
        eventually(lambda: worker.log_text().count("disk full") >= 2, 60, "two attempts")
        refuse.unlink()

        eventually(lambda: not unfinished(own_server), 60, "two dead letters")
        grown = peak_mib(worker) - before
        assert app.send_task("fixture.add", (1, 2)).get(timeout=30) == 3

    letters = [json.loads(line) for line in (tmp_path / "letters.jsonl").read_text().splitlines()]
    assert grown < 2.5 * SIZE / 2**20
    assert len(letters) >= 2  # more on a machine that is slower than the visibility timeout
    assert {bytes.fromhex(letter["body"]) for letter in letters} == {large[:MAX_KEPT_BYTES]}
    assert {letter["error"] for letter in letters} == {
        f"is over {MAX_KEPT_BYTES} bytes (kept: {MAX_KEPT_BYTES})"
    }


def test_a_trip_takes_no_more_messages_than_fit_into_the_memory(own_server: Redis):
    """The others are taken by the next one, or by another worker."""
    with Connection(own_server.url, transport=OUR_TRANSPORT) as connection:
        connection.transport.max_item_bytes = 1_000_000
        publish(connection, *("x" * 400_000 for _ in range(6)))
        channel = connection.channel()
        trip = channel.new_trip(["orders"], 16, set())

        found, _, _ = channel.client.eval(FETCH, *channel.arguments(trip))

        assert len(found) == 2
        assert (channel.client.llen("orders"), channel.client.hlen("unacked")) == (4, 2)
