"""taskiq with the list broker and the result backend of taskiq-redis."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from taskiq import Context, TaskiqDepends
from taskiq_redis import ListQueueBroker, RedisAsyncResultBackend

from benchmarks.peers import job
from benchmarks.peers.peer import Line, Peer, Programs, redis_url

# It waits in BRPOP without limit; with a time-out redis-py would raise and the worker would stop listening.
broker = ListQueueBroker(url=redis_url(7), queue_name="lines", socket_timeout=None).with_result_backend(
    RedisAsyncResultBackend(redis_url=redis_url(7))
)


@broker.task
def allocate(orderid: str, sku: str, qty: int, context: Context = TaskiqDepends()) -> str | None:  # noqa: B008
    """Allocate one line."""
    return job.allocate(context.message.task_id, orderid, sku, qty)


def workers(processes: int, threads: int = 4) -> Programs:
    """Processes with some threads each for blocking code, and as many tasks at a time."""
    limits = ["--max-async-tasks", str(threads), "--max-threadpool-threads", str(threads)]
    return [["-m", "taskiq", "worker", f"{__name__}:broker", "--workers", str(processes), *limits]]


def choices(cores: int) -> dict[str, Programs]:
    """Fewer and more of both."""
    return {
        f"{processes} processes × {threads} threads": workers(processes, threads)
        for processes, threads in ((cores, 1), (cores, 4), (cores, 16), (2 * cores, 4))
    }


def publish(lines: Sequence[Line]) -> None:
    """Enqueue."""
    asyncio.run(_publish(lines))


async def _publish(lines: Sequence[Line]) -> None:
    await broker.startup()
    for line in lines:
        await allocate.kiq(line.orderid, line.sku, line.qty)
    await broker.shutdown()


peer = Peer("taskiq_peer", "taskiq", workers, publish, choices=choices, lacks="acknowledges nothing")
