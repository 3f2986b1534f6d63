"""What beat runs: the relay, the scheduled re-run and the pruning. Any number of copies do no harm."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

from celery import Celery, Task

from messaging.delivery import Delivery
from messaging.errors import UnknownMessage, describe
from messaging.postgres.transaction import DATABASE_ERRORS
from messaging.runtime import Runtime
from messaging.worker.announcements import announce
from messaging.worker.rabbitmq import collect_dead_letters
from messaging.worker.sender import send

logger = logging.getLogger(__name__)

#: Seconds that one run of the relay takes, however slow the broker is; the next one goes on.
RELAY_FOR_S = 10.0

#: Seconds that one run of `prune` takes, and rows that one of its transactions deletes.
PRUNE_FOR_S = 5.0
PRUNE_BATCH = 1000


def add_housekeeping_tasks(app: Celery, runtime: Runtime) -> None:
    """Register the tasks that the beat schedule names."""
    for job in (relay, announce, collect_dead_letters, rerun, prune):
        _add_housekeeping_task(app, runtime, job, f"{runtime.project.name}.{job.__name__}")


def _add_housekeeping_task(app: Celery, runtime: Runtime, job: Any, name: str) -> None:
    # send_events=False: in Flower's list they would hide the commands; `check` and the metrics watch them.
    @app.task(bind=True, shared=False, name=name, ignore_result=True, send_events=False, __doc__=job.__doc__)
    def housekeeping_task(task: Task) -> int:
        count: int = job(app, runtime)
        runtime.heartbeats.note(job.__name__, task.request.hostname or "here")
        return count


def relay(app: Celery, runtime: Runtime) -> int:
    """Send the deliveries whose message never arrived or was lost; return how many."""
    settings, sent = runtime.settings, 0
    until = time.monotonic() + min(RELAY_FOR_S, settings.task_time_limit_s / 3)
    while time.monotonic() < until:
        due = runtime.deliveries.take_due(settings.relay_batch, settings.relay_grace_max_s)
        sent += send_known(app, runtime, due)
        if len(due) < settings.relay_batch:
            break
    return sent


def send_known(app: Celery, runtime: Runtime, deliveries: Iterable[Delivery]) -> int:
    """Send deliveries; those whose handler or event this release does not have become failed and say so."""
    return send(app, runtime, [delivery for delivery in deliveries if _is_known(app, runtime, delivery)])


def _is_known(app: Celery, runtime: Runtime, delivery: Delivery) -> bool:
    """Fail a delivery that nobody can handle; a release that can will re-run it."""
    if delivery.event_type not in runtime.project.bus.event_types:
        problem = f"event {delivery.event_type}"
    elif runtime.project.handler_task(delivery.handler) not in app.tasks:
        problem = f"handler {delivery.handler}"
    else:
        return True
    try:
        error = UnknownMessage(f"This release has no {problem}")
        runtime.deliveries.give_up(delivery.id, "relay", error, as_read=delivery)
    except DATABASE_ERRORS:
        logger.exception("Delivery %s could not be failed: this release has no %s", delivery.id, problem)
    return False


def rerun(app: Celery, runtime: Runtime) -> int:
    """Put failed deliveries whose cool-down is over back to pending, and send them; return how many."""
    settings = runtime.settings
    deliveries = runtime.deliveries.rerun_cooled(
        settings.rerun_batch,
        settings.rerun_max,
        settings.rerun_cooldown_s,
        settings.rerun_cooldown_max_s,
        settings.relay_grace_s,
    )
    send_known(app, runtime, deliveries)
    return len(deliveries)


def prune(app: Celery, runtime: Runtime) -> int:
    """Delete what ended long ago, in small batches; return how many rows went.

    After some seconds it asks for another run, so that the relay has its turn in between.
    """
    until = time.monotonic() + min(PRUNE_FOR_S, runtime.settings.task_time_limit_s / 4)
    gone, unfinished = 0, _prunings(runtime)
    while unfinished and time.monotonic() < until:
        pruning = unfinished.pop(0)
        deleted = pruning.delete(pruning.batch)
        gone += deleted
        if deleted >= pruning.batch:
            unfinished.append(pruning)
    if unfinished:
        _ask_to_prune(app, runtime)
    return gone


@dataclass(frozen=True)
class Pruning:
    """What deletes old rows of a table, at most so many at once, and returns how many."""

    delete: Callable[[int], int]
    batch: int


def _prunings(runtime: Runtime) -> list[Pruning]:
    settings, deliveries = runtime.settings, runtime.deliveries
    return [
        Pruning(partial(deliveries.prune, settings.done_retention_s), PRUNE_BATCH),
        Pruning(deliveries.open_attempts.prune, PRUNE_BATCH),
        Pruning(partial(runtime.inbox.prune, settings.inbox_retention_s), PRUNE_BATCH),
        # Each may have megabytes.
        Pruning(partial(runtime.dead_letters.prune, settings.dead_letter_retention_s), PRUNE_BATCH // 10),
    ]


def _ask_to_prune(app: Celery, runtime: Runtime) -> None:
    """Have `prune` run again soon; where the housekeeping has no time for it, beat's next run goes on."""
    project = runtime.project
    try:
        app.send_task(
            f"{project.name}.prune",
            queue=project.housekeeping_queue,
            expires=2 * PRUNE_FOR_S,
            ignore_result=True,
            add_to_parent=False,
            retry=False,
        )
    except Exception as error:  # noqa: BLE001  whatever it is, beat asks too
        logger.warning("Pruning goes on later: %s", describe(error))
