"""Messages of an earlier release's workers under kombu's own keys: only ours are redelivered."""

from __future__ import annotations

from pathlib import Path

import pytest
import redis

from local.processes.child import Child
from local.servers.redis_server import Redis
from local.waiting import eventually
from tests.reliable_celery.celery_fixtures.processes import (
    CONFIG,
    OUR_CONSUMER,
    make_worker,
    marks,
    running,
    sender,
)

SHORT = CONFIG["broker_transport_options"] | {"visibility_timeout": 3, "lease_s": 4}
NAMED = {f"unacked{part}_key": f"fixture.unacked{part}" for part in ("", "_index", "_mutex")}


def worker_of(release: str, server: Redis, folder: Path, pool: str) -> Child:
    """Return a worker that registers messages under kombu's own keys (`old`) or the project's (`new`)."""
    options = SHORT | (NAMED if release == "new" else {})
    return make_worker(
        server, folder, release, pool, worker_consumer=OUR_CONSUMER, broker_transport_options=options
    )


@pytest.mark.parametrize("pool", ["solo", "prefork"])
def test_messages_of_a_killed_worker_of_an_earlier_release_are_redelivered(
    redis_server: Redis, broker: redis.Redis, tmp_path: Path, pool: str
):
    """After its lease, or after the visibility timeout in the solo pool, which has no lease."""
    app = sender(redis_server, task_ignore_result=True)
    old, new = (worker_of(release, redis_server, tmp_path, pool) for release in ("old", "new"))
    with running(old):
        for number in range(4):
            app.send_task("fixture.mark", (number, 1.0))
        eventually(lambda: broker.hlen("unacked"), 30, "the old worker's grip on a message")
        old.kill()
    with running(new):
        eventually(lambda: marks(redis_server).keys() == {0, 1, 2, 3}, 60, "all four marks")
        eventually(lambda: not broker.exists("unacked", "unacked_index", "fixture.unacked"), 30)

    assert "Took over" in new.log_text()


@pytest.mark.long
def test_a_living_worker_of_an_earlier_release_keeps_its_messages(
    redis_server: Redis, broker: redis.Redis, tmp_path: Path
):
    """This happens in a rolling deploy."""
    app = sender(redis_server, task_ignore_result=True)
    old, new = (worker_of(release, redis_server, tmp_path, "prefork") for release in ("old", "new"))
    with running(old):
        app.send_task("fixture.mark", (1, 15.0))
        eventually(lambda: broker.hlen("unacked") == 1, 30)
        with running(new):
            eventually(lambda: not broker.exists("unacked"), 60, "the end of the task")

            assert new.log_text().count("] received") == 0

    assert marks(redis_server) == {1: 1}


def test_other_apps_messages_are_left_alone(redis_server: Redis, broker: redis.Redis, tmp_path: Path):
    """Neither a stock app's messages nor those of another project's queue are touched."""
    ours, theirs = "a" * 32 + ".1.1", "b" * 32 + ".1.1"
    stock = "6a1ff8ae-4c5e-4b0f-9d0c-1f1f9f0e8c11"
    entry = b'[{"body": "", "headers": {}, "properties": {"delivery_tag": "t"}},"","%s"]'
    left = {theirs: entry % b"other.commands", stock: entry % b"neighbour"}
    broker.hset("unacked", mapping={ours: entry % b"celery", **left})
    broker.zadd("unacked_index", dict.fromkeys((ours, theirs, stock), 1.0))

    with running(worker_of("new", redis_server, tmp_path, "prefork")):
        eventually(lambda: not broker.hexists("unacked", ours), 30, "ours taken over")

    assert broker.hgetall("unacked") == {tag.encode(): value for tag, value in left.items()}
    assert broker.zcard("unacked_index") == 2
