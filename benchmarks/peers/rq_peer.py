"""RQ with its faster worker class, which does not fork for each job."""

from __future__ import annotations

from collections.abc import Sequence

from redis import Redis
from rq import Queue, get_current_job

from benchmarks.peers import job
from benchmarks.peers.peer import Line, Peer, Programs, redis_url

QUEUE = "lines"


def allocate(orderid: str, sku: str, qty: int) -> str | None:
    """Allocate one line."""
    current = get_current_job()
    assert current is not None, "runs in a job"  # noqa: S101
    return job.allocate(current.id, orderid, sku, qty)


def workers(processes: int) -> Programs:
    """One worker per process."""
    command = ["-m", "rq.cli", "worker", "--url", redis_url(5), "--worker-class", "rq.worker.SimpleWorker"]
    return [[*command, QUEUE] for _ in range(processes)]


def publish(lines: Sequence[Line]) -> None:
    """Enqueue; RQ stores results in Redis by itself."""
    queue = Queue(QUEUE, connection=Redis.from_url(redis_url(5)))
    for line in lines:
        queue.enqueue(allocate, line.orderid, line.sku, line.qty)


def choices(cores: int) -> dict[str, Programs]:
    """As many processes as cores, or more."""
    return {f"{count} processes": workers(count) for count in (cores, 2 * cores)}


peer = Peer("rq_peer", "RQ", workers, publish, choices=choices)
