"""This backend in solo processes, which run one task at a time, without a pool."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from celery import Celery

from benchmarks.peers import ours
from benchmarks.peers.peer import Line, Peer, redis_url
from local.processes.programs import WORK_QUEUES


def on_servers_of_its_own(
    name: str, title: str, database: int, publish: Callable[[Sequence[Line], Celery], object]
) -> Peer:
    """Return this backend with its own databases for broker and results."""
    broker, results = redis_url(database), redis_url(database + 1)
    sender = Celery(f"sender of {name}", broker=broker, backend=results, set_as_current=False)
    return Peer(
        name,
        title,
        ours.workers,
        lambda lines: publish(lines, sender),
        env={"ALLOCATION_BROKER_URL": broker, "ALLOCATION_RESULT_BACKEND_URL": results},
    )


def solo(
    name: str,
    title: str,
    database: int,
    publish: Callable[[Sequence[Line], Celery], object] = ours.publish,
    prefetches: Mapping[str, int | None] = ours.OUR_PREFETCHES,
) -> Peer:
    """Return a peer with solo processes."""
    return replace(
        on_servers_of_its_own(name, title, database, publish),
        workers=lambda processes: [
            ours.celery_worker("tasks", f"{name}{number}", WORK_QUEUES, "solo", 1)
            for number in range(processes)
        ],
        choices=ours.solo_choices("tasks", name, WORK_QUEUES, prefetches),
        choices_env=ours.GROUPS,
    )


peer = solo("ours_solo", "this backend, solo processes", 10)
