"""Start and watch real workers."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis
from celery import Celery

from local.processes.child import Child
from local.servers.redis_server import Redis
from local.waiting import eventually

OUR_TRANSPORT = "reliable_celery.redis.transport:Transport"
OUR_CONSUMER = "reliable_celery.consumer:Consumer"
OUR_POOL = "reliable_celery.pools.prefork:TaskPool"

CONFIG: dict[str, Any] = {
    "accept_content": ["json"],
    "task_acks_late": True,
    "worker_prefetch_multiplier": 2,
    "worker_cancel_long_running_tasks_on_connection_loss": True,
    "broker_connection_retry_on_startup": True,
    "broker_connection_max_retries": None,
    "broker_transport": OUR_TRANSPORT,
    "worker_pool": OUR_POOL,
    "broker_transport_options": {
        "visibility_timeout": 2,
        "socket_timeout": 10,
    },
}


def make_worker(
    server: Redis,
    folder: Path,
    name: str,
    pool: str = "solo",
    loglevel: str = "INFO",
    concurrency: int = 2,
    **settings: Any,
) -> Child:
    """Return a worker of the fixture app, not started: broker in database 0, results in 1, marks in 2."""
    config = CONFIG | {"broker_url": server.url, "result_backend": server.url_of(1)} | settings
    command = [
        "-m",
        "celery",
        "-A",
        "tests.reliable_celery.celery_fixtures.worker_app",
        "worker",
        "-n",
        f"{name}@test",
    ]
    options = ["-P", pool, "-c", str(concurrency), "-l", loglevel, "--without-gossip", "--without-mingle"]
    env = os.environ | {
        "FIXTURE_CONFIG": json.dumps(config),
        "FIXTURE_LETTERS": str(folder / "letters.jsonl"),
        "FIXTURE_MARKS": server.url_of(2),
    }
    return Child(f"worker {name}", [sys.executable, *command, *options], log=folder / f"{name}.log", env=env)


def await_ready(worker: Child) -> Child:
    """Wait until `worker` consumes."""
    eventually(lambda: "ready." in worker.log_text(), timeout=60, what=f"a ready {worker.name}")
    return worker


@contextmanager
def running(*workers: Child) -> Iterator[None]:
    """Run `workers` until the end of the block; their logs are shown if the test fails."""
    try:
        for worker in workers:
            worker.start()
        for worker in workers:
            await_ready(worker)
        yield
    finally:
        for worker in workers:
            worker.kill()
            print(f"{worker.name}:\n{worker.log_text()[-8000:]}")


def sender(server: Redis, **settings: Any) -> Celery:
    """Return a stock Celery app, like another project's; it does not use our transport."""
    app = Celery("sender", set_as_current=False)
    app.conf.update(broker_url=server.url, result_backend=server.url_of(1), **settings)
    return app


def marks(server: Redis) -> dict[int, int]:
    """Return how often each number was counted."""
    with redis.Redis.from_url(server.url_of(2)) as client:
        return {int(number): int(count) for number, count in client.hgetall("marks").items()}


def unfinished(server: Redis, queue: str = "celery") -> int:
    """Return how many messages are waiting or unacknowledged."""
    with redis.Redis.from_url(server.url) as client:
        return int(client.llen(queue)) + int(client.hlen("unacked"))
