"""This backend in processes that run one task at a time themselves, with no pool between."""

from __future__ import annotations

from collections.abc import Sequence

from celery import Celery

from benchmarks.peers import ours
from benchmarks.peers.peer import Line, Peer, redis_url
from local.programs import WORK_QUEUES

LINES_PER_MESSAGE = 100


def solo(name: str, title: str, database: int, bulk: bool = False) -> Peer:
    """Return such a peer with a broker database and, next to it, a result database of its own."""
    broker, results = redis_url(database), redis_url(database + 1)
    sender = Celery(f"sender of {name}", broker=broker, backend=results, set_as_current=False)
    send = publish_bulk if bulk else ours.publish
    return Peer(
        name,
        title,
        lambda processes: [
            ours.celery_worker("tasks", f"{name}{number}", WORK_QUEUES, "solo", 1)
            for number in range(processes)
        ],
        lambda lines: send(lines, sender),
        env={"ALLOCATION_BROKER_URL": broker, "ALLOCATION_RESULT_BACKEND_URL": results},
    )


def publish_bulk(lines: Sequence[Line], sender: Celery) -> None:
    """Send a hundred lines in one message; each has its own transaction and result all the same."""
    for start in range(0, len(lines), LINES_PER_MESSAGE):
        commands = [
            ["allocation.allocate", {"orderid": line.orderid, "sku": line.sku, "qty": line.qty}]
            for line in lines[start : start + LINES_PER_MESSAGE]
        ]
        sender.send_task("allocation.many", (commands,), queue="allocation.commands")


peer = solo("ours_solo", "this backend, solo processes", 10)
