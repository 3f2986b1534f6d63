"""dramatiq with its Redis broker and result backend."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import dramatiq
from dramatiq.brokers.redis import RedisBroker
from dramatiq.middleware import CurrentMessage
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend

from benchmarks.peers import job
from benchmarks.peers.peer import Line, Peer, Programs, redis_url

broker = RedisBroker(url=redis_url(4))
broker.add_middleware(Results(backend=RedisBackend(url=redis_url(4))))
broker.add_middleware(CurrentMessage())
dramatiq.set_broker(broker)
logger = logging.getLogger(__name__)


@dramatiq.actor(store_results=True, max_retries=0, queue_name="lines")
def allocate(orderid: str, sku: str, qty: int) -> str | None:
    """Allocate one line."""
    message = CurrentMessage.get_current_message()
    assert message is not None, "an actor runs for a message"  # noqa: S101
    return job.allocate(message.message_id, orderid, sku, qty)


@dramatiq.actor(store_results=False, max_retries=0, queue_name="events")
def reallocate(orderid: str, sku: str, qty: int) -> None:
    """Allocate one line, without writing an answer or a delivery."""
    with job.connection() as opened, opened.cursor() as run:
        job.allocate_line(run, orderid, sku, qty)


def workers(processes: int, threads: int = 8) -> Programs:
    """Processes with dramatiq's default number of threads."""
    return [["-m", "dramatiq", __name__, "--processes", str(processes), "--threads", str(threads)]]


def choices(cores: int) -> dict[str, Programs]:
    """Fewer and more of both; a thread more is a message more in the prefetch."""
    numbers = [(cores, 1), (cores, 4), (cores, 8), (cores, 16), (2 * cores, 8)]
    return {
        f"{processes} processes × {threads} threads": workers(processes, threads)
        for processes, threads in numbers
    }


def publish(lines: Sequence[Line]) -> None:
    """Enqueue."""
    for line in lines:
        allocate.send(line.orderid, line.sku, line.qty)


peer = Peer("dramatiq_peer", "dramatiq", workers, publish, choices=choices)
