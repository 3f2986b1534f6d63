"""Huey on Redis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from huey import RedisHuey

from benchmarks.peers import job
from benchmarks.peers.peer import Line, Peer, Programs, redis_url

huey = RedisHuey("lines", url=redis_url(6))


@huey.task(context=True)
def allocate(orderid: str, sku: str, qty: int, task: Any = None) -> str | None:
    """Allocate one line."""
    return job.allocate(task.id, orderid, sku, qty)


def workers(count: int, kind: str = "process") -> Programs:
    """One consumer with worker processes."""
    return [["-m", "huey.bin.huey_consumer", f"{__name__}.huey", "-w", str(count), "-k", kind]]


def choices(cores: int) -> dict[str, Programs]:
    """Processes, or threads."""
    return {
        f"{cores} processes": workers(cores),
        f"{2 * cores} processes": workers(2 * cores),
        f"{4 * cores} processes": workers(4 * cores),
        f"{4 * cores} threads": workers(4 * cores, "thread"),
    }


def publish(lines: Sequence[Line]) -> None:
    """Enqueue; Huey stores results in Redis by itself."""
    for line in lines:
        allocate(line.orderid, line.sku, line.qty)


peer = Peer("huey_peer", "Huey", workers, publish, choices=choices, lacks="acknowledges nothing")
