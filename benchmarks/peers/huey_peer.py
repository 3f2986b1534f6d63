"""Huey on Redis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from huey import RedisHuey

from benchmarks.peers import job
from benchmarks.peers.peer import Line, Peer, redis_url

huey = RedisHuey("lines", url=redis_url(6))


@huey.task(context=True)
def allocate(orderid: str, sku: str, qty: int, task: Any = None) -> str | None:
    """Allocate one line."""
    return job.allocate(task.id, orderid, sku, qty)


def workers(processes: int) -> list[list[str]]:
    """One consumer with worker processes."""
    return [["-m", "huey.bin.huey_consumer", f"{__name__}.huey", "-w", str(processes), "-k", "process"]]


def publish(lines: Sequence[Line]) -> None:
    """Enqueue; Huey stores results in Redis by itself."""
    for line in lines:
        allocate(line.orderid, line.sku, line.qty)


peer = Peer("huey_peer", "Huey", workers, publish)
