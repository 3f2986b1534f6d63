"""The book's chapter 10 in solo processes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from benchmarks.peers import chapter10
from benchmarks.peers.ours import celery_worker, solo_choices
from benchmarks.peers.peer import Line


def workers(processes: int) -> list[list[str]]:
    """One worker per process."""
    return [
        celery_worker(chapter10.__name__, f"chapter10solo{number}", chapter10.SOLO_QUEUE, "solo", 1)
        for number in range(processes)
    ]


def publish(lines: Sequence[Line]) -> None:
    """Send by task name, to its own queue."""
    chapter10.publish(lines, chapter10.SOLO_QUEUE)


peer = replace(
    chapter10.peer,
    name="chapter10_solo",
    title="the book's chapter 10, solo processes",
    workers=workers,
    publish=publish,
    prepare=lambda: None,  # the other one has created the tables
    choices=solo_choices(chapter10.__name__, "chapter10solo", chapter10.SOLO_QUEUE),
)
