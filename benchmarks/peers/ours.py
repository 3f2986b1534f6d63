"""This backend, as `make up` runs it."""

from __future__ import annotations

from collections.abc import Sequence

from celery import Celery
from celery.result import AsyncResult

from benchmarks.peers.peer import Line, Peer, redis_url
from local.processes.programs import WORK_QUEUES

#: Another app, without any import of this project.
sender = Celery("sender", broker=redis_url(0), backend=redis_url(1))


def workers(processes: int) -> list[list[str]]:
    """One worker with a pool of child processes."""
    return [celery_worker("tasks", "ours", WORK_QUEUES, "prefork", processes)]


def celery_worker(app_name: str, node: str, queues: str, pool: str, concurrency: int) -> list[str]:
    """Return Python's arguments for a Celery worker with the usual log level."""
    return [
        "-m", "celery", "-A", app_name, "worker", f"--queues={queues}", f"--hostname={node}@%h",
        f"--pool={pool}", f"--concurrency={concurrency}", "--loglevel=INFO",
    ]  # fmt: skip


def publish(lines: Sequence[Line], sender: Celery = sender) -> None:
    """Enqueue lines."""
    for line in lines:
        send(line, sender)


def send(line: Line, sender: Celery = sender) -> AsyncResult[str | None]:
    """Send by task name, like another app; results are in Redis."""
    return sender.send_task(
        "allocation.allocate", (line.orderid, line.sku, line.qty), queue="allocation.commands", declare=()
    )


peer = Peer("ours", "this backend, prefork", workers, publish)
