"""Beat's tasks: relay, announcements, scheduled re-runs and pruning. Any number of copies can run."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from celery import Task

from messaging.project.runtime import Runtime
from messaging.telemetry.work import Kind, Work
from messaging.worker import rabbitmq
from messaging.worker.dispatcher import Dispatcher
from messaging.worker.rerunning import carry_on
from messaging.worker.waking import wake, without_paused

logger = logging.getLogger(__name__)

#: Longest time in seconds for each part of the relay, however slow the broker is; the next run continues.
RELAY_FOR_S = 8.0

#: Longest run of `prune` in seconds, and rows deleted per transaction.
PRUNE_FOR_S = 5.0
PRUNE_BATCH = 1000


def add_housekeeping_tasks(dispatcher: Dispatcher) -> None:
    """Register the tasks in the beat schedule."""
    for job in (relay, announce, collect_dead_letters, rerun, prune):
        _add_housekeeping_task(dispatcher, job)


def _add_housekeeping_task(dispatcher: Dispatcher, job: Any) -> None:
    name = f"{dispatcher.project.name}.{job.__name__}"

    # send_events=False: they would hide commands in Flower's list; `check` and the metrics watch them.
    @dispatcher.app.task(
        bind=True, shared=False, name=name, ignore_result=True, send_events=False, __doc__=job.__doc__
    )
    def housekeeping_task(task: Task) -> int:
        request = task.request
        work = Work(
            Kind.HOUSEKEEPING,
            job.__name__,
            request.id or "",
            dispatcher.project.housekeeping_queue,
            request.id or "",
        )
        with dispatcher.watch.over(work):
            count: int = job(dispatcher)
        dispatcher.runtime.heartbeats.note(job.__name__, task.request.hostname or "here")
        return count


def relay(dispatcher: Dispatcher) -> int:
    """Send deliveries whose message was lost or never sent, or whose wait is over, and go on with re-runs.

    Returns how many were sent. Each of the three has its own time, and what was lost comes first.
    """
    each_s = min(RELAY_FOR_S, dispatcher.runtime.settings.task_time_limit_s / 4)
    return sum(job(dispatcher.within(each_s)) for job in (_send_lost, wake, carry_on))


def _send_lost(dispatcher: Dispatcher) -> int:
    runtime, sent = dispatcher.runtime, 0
    settings = runtime.settings
    while time.monotonic() < dispatcher.until:
        due = runtime.due.take(settings.relay_batch, settings.relay_grace_max_s)
        sent += dispatcher.send_known(without_paused(dispatcher, due))
        if len(due) < settings.relay_batch:
            break
    return sent


def announce(dispatcher: Dispatcher) -> int:
    """Publish waiting events to other apps; return how many."""
    return dispatcher.announcer.announce()


def collect_dead_letters(dispatcher: Dispatcher) -> int:
    """Record messages that RabbitMQ has dead-lettered; return how many."""
    return rabbitmq.collect_dead_letters(dispatcher.app, dispatcher.runtime)


def rerun(dispatcher: Dispatcher) -> int:
    """Re-run failed deliveries whose cool-down is over; return how many."""
    settings = dispatcher.runtime.settings
    deliveries = dispatcher.runtime.outbox.rerun_cooled(
        settings.rerun_batch, settings.rerun_max, settings.rerun_cooldown_s, settings.rerun_cooldown_max_s
    )
    dispatcher.send_known(deliveries)
    return len(deliveries)


def prune(dispatcher: Dispatcher) -> int:
    """Delete old rows in small batches; return how many.

    After some seconds it requests another run, so that the relay gets its turn in between.
    """
    runtime = dispatcher.runtime
    until = time.monotonic() + min(PRUNE_FOR_S, runtime.settings.task_time_limit_s / 4)
    gone, unfinished = 0, _prunings(runtime)
    while unfinished and time.monotonic() < until:
        pruning = unfinished.pop(0)
        deleted = pruning.delete(pruning.batch)
        gone += deleted
        if deleted >= pruning.batch:
            unfinished.append(pruning)
    if unfinished:
        dispatcher.go_on_later("prune", PRUNE_FOR_S)
    return gone


@dataclass(frozen=True)
class Pruning:
    """Deletes up to a number of a table's old rows, and returns how many."""

    delete: Callable[[int], int]
    batch: int


def _prunings(runtime: Runtime) -> list[Pruning]:
    settings, outbox = runtime.settings, runtime.outbox
    return [
        Pruning(partial(outbox.prune, settings.done_retention_s), PRUNE_BATCH),
        Pruning(outbox.prune_open_attempts, PRUNE_BATCH),
        Pruning(runtime.limits.prune, PRUNE_BATCH),
        Pruning(partial(runtime.inbox.prune, settings.inbox_retention_s), PRUNE_BATCH),
        # Each may be megabytes in size.
        Pruning(partial(runtime.dead_letters.prune, settings.dead_letter_retention_s), PRUNE_BATCH // 10),
    ]
