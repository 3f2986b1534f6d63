"""This backend, as `make up` runs it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from celery import Celery
from celery.result import AsyncResult

from benchmarks.peers.peer import Line, Peer, Programs, redis_url
from local.processes.programs import WORK_QUEUES

#: Another app, without any import of this project.
sender = Celery("sender", broker=redis_url(0), backend=redis_url(1))


def workers(processes: int) -> list[list[str]]:
    """One worker with a pool of child processes."""
    return [celery_worker("tasks", "ours", WORK_QUEUES, "prefork", processes)]


def celery_worker(
    app_name: str, node: str, queues: str, pool: str, concurrency: int, prefetch: int | None = None
) -> list[str]:
    """Return Python's arguments for a Celery worker with the usual log level.

    `prefetch` is the multiplier: Celery ignores one that is given as a setting after `--`.
    """
    return [
        "-m", "celery", "-A", app_name, "worker", f"--queues={queues}", f"--hostname={node}@%h",
        f"--pool={pool}", f"--concurrency={concurrency}", "--loglevel=INFO",
        *([] if prefetch is None else [f"--prefetch-multiplier={prefetch}"]),
    ]  # fmt: skip


#: Prefetches of a plain worker; ours also with commands in groups, for which it takes as many by itself.
PREFETCHES = {f"prefetch {count}": count for count in (4, 16)}
GROUPS = {f"groups of {count}": {"ALLOCATION_GROUP_MAX": str(count)} for count in (16, 32)}
OUR_PREFETCHES: dict[str, int | None] = {**PREFETCHES, **dict.fromkeys(GROUPS)}


def prefork_choices(
    app_name: str, node: str, queues: str, prefetches: Mapping[str, int | None] = PREFETCHES
) -> Callable[[int], dict[str, Programs]]:
    """Return the usual settings of a worker with child processes."""
    return lambda cores: {
        f"{count} processes, {what}": [celery_worker(app_name, node, queues, "prefork", count, prefetch)]
        for count in (cores, 2 * cores)
        for what, prefetch in prefetches.items()
    }


def solo_choices(
    app_name: str, node: str, queues: str, prefetches: Mapping[str, int | None] = PREFETCHES
) -> Callable[[int], dict[str, Programs]]:
    """Return the usual settings of workers without a pool."""
    return lambda cores: {
        f"{count} processes, {what}": [
            celery_worker(app_name, f"{node}{number}", queues, "solo", 1, prefetch) for number in range(count)
        ]
        for count in (cores, 2 * cores)
        for what, prefetch in prefetches.items()
    }


def publish(lines: Sequence[Line], sender: Celery = sender) -> None:
    """Enqueue lines."""
    for line in lines:
        send(line, sender)


def send(line: Line, sender: Celery = sender, **options: object) -> AsyncResult[str | None]:
    """Send by task name, like another app; results are in Redis."""
    return sender.send_task(
        "allocation.allocate",
        (line.orderid, line.sku, line.qty),
        queue="allocation.commands",
        declare=(),
        **options,
    )


def send_one(task_id: str, sku: str) -> None:
    """Enqueue a line under an id that its sender chose; it is the order id too."""
    sender.send_task(
        "allocation.allocate", (task_id, sku, 1), task_id=task_id, queue="allocation.commands", declare=()
    )


peer = Peer(
    "ours",
    "this backend, prefork",
    workers,
    publish,
    choices=prefork_choices("tasks", "ours", WORK_QUEUES, OUR_PREFETCHES),
    choices_env=GROUPS,
)
