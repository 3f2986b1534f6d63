"""Plain Celery in solo processes."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.peers import plain_celery
from benchmarks.peers.ours import celery_worker, solo_choices
from benchmarks.peers.peer import Line, Peer
from benchmarks.peers.plain_celery import SOLO_QUEUE


def workers(processes: int) -> list[list[str]]:
    """One worker per process."""
    return [
        celery_worker("benchmarks.peers.plain_celery", f"plainsolo{number}", SOLO_QUEUE, "solo", 1)
        for number in range(processes)
    ]


def publish(lines: Sequence[Line]) -> None:
    """Send by task name, to its own queue."""
    plain_celery.publish(lines, SOLO_QUEUE)


peer = Peer(
    "plain_celery_solo",
    "plain Celery, solo processes",
    workers,
    publish,
    choices=solo_choices("benchmarks.peers.plain_celery", "plainsolo", SOLO_QUEUE),
)
