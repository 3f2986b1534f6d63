"""This backend in processes that run one task at a time themselves, with no pool between."""

from __future__ import annotations

from collections.abc import Sequence

from celery import Celery

from benchmarks.peers import ours
from benchmarks.peers.peer import Line, Peer, redis_url
from local.programs import WORK_QUEUES

BROKER, RESULTS = redis_url(10), redis_url(11)
sender = Celery("solo sender", broker=BROKER, backend=RESULTS)


def workers(processes: int) -> list[list[str]]:
    """As many workers as processes."""
    return [
        ours.celery_worker("tasks", f"solo{number}", WORK_QUEUES, "solo", 1) for number in range(processes)
    ]


def publish(lines: Sequence[Line]) -> None:
    """Send by task name, to databases of its own."""
    ours.publish(lines, sender)


peer = Peer(
    "ours_solo",
    "this backend, solo processes",
    workers,
    publish,
    env={"ALLOCATION_BROKER_URL": BROKER, "ALLOCATION_RESULT_BACKEND_URL": RESULTS},
)
