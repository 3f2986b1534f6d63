"""What beat runs: the relay, the scheduled re-run and the pruning. Any number of copies do no harm."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from celery import Task

from messaging.errors import describe
from messaging.runtime import Runtime
from messaging.worker import rabbitmq
from messaging.worker.dispatcher import Dispatcher

logger = logging.getLogger(__name__)

#: Seconds that one run of the relay takes, however slow the broker is; the next one goes on.
RELAY_FOR_S = 10.0

#: Seconds that one run of `prune` takes, and rows that one of its transactions deletes.
PRUNE_FOR_S = 5.0
PRUNE_BATCH = 1000


def add_housekeeping_tasks(dispatcher: Dispatcher) -> None:
    """Register the tasks that the beat schedule names."""
    for job in (relay, announce, collect_dead_letters, rerun, prune):
        _add_housekeeping_task(dispatcher, job)


def _add_housekeeping_task(dispatcher: Dispatcher, job: Any) -> None:
    name = f"{dispatcher.project.name}.{job.__name__}"

    # send_events=False: in Flower's list they would hide the commands; `check` and the metrics watch them.
    @dispatcher.app.task(
        bind=True, shared=False, name=name, ignore_result=True, send_events=False, __doc__=job.__doc__
    )
    def housekeeping_task(task: Task) -> int:
        count: int = job(dispatcher)
        dispatcher.runtime.heartbeats.note(job.__name__, task.request.hostname or "here")
        return count


def relay(dispatcher: Dispatcher) -> int:
    """Send the deliveries whose message never arrived or was lost; return how many."""
    runtime, sent = dispatcher.runtime, 0
    settings = runtime.settings
    until = time.monotonic() + min(RELAY_FOR_S, settings.task_time_limit_s / 3)
    while time.monotonic() < until:
        due = runtime.outbox.take_due(settings.relay_batch, settings.relay_grace_max_s)
        sent += dispatcher.send_known(due)
        if len(due) < settings.relay_batch:
            break
    return sent


def announce(dispatcher: Dispatcher) -> int:
    """Publish the events that wait for other apps; return how many."""
    return dispatcher.announce()


def collect_dead_letters(dispatcher: Dispatcher) -> int:
    """Record what RabbitMQ has set aside; return how many."""
    return rabbitmq.collect_dead_letters(dispatcher.app, dispatcher.runtime)


def rerun(dispatcher: Dispatcher) -> int:
    """Put failed deliveries whose cool-down is over back to pending, and send them; return how many."""
    settings = dispatcher.runtime.settings
    deliveries = dispatcher.runtime.outbox.rerun_cooled(
        settings.rerun_batch, settings.rerun_max, settings.rerun_cooldown_s, settings.rerun_cooldown_max_s
    )
    dispatcher.send_known(deliveries)
    return len(deliveries)


def prune(dispatcher: Dispatcher) -> int:
    """Delete what ended long ago, in small batches; return how many rows went.

    After some seconds it asks for another run, so that the relay has its turn in between.
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
        _ask_to_prune(dispatcher)
    return gone


@dataclass(frozen=True)
class Pruning:
    """What deletes old rows of a table, at most so many at once, and returns how many."""

    delete: Callable[[int], int]
    batch: int


def _prunings(runtime: Runtime) -> list[Pruning]:
    settings, outbox = runtime.settings, runtime.outbox
    return [
        Pruning(partial(outbox.prune, settings.done_retention_s), PRUNE_BATCH),
        Pruning(outbox.prune_open_attempts, PRUNE_BATCH),
        Pruning(partial(runtime.inbox.prune, settings.inbox_retention_s), PRUNE_BATCH),
        # Each may have megabytes.
        Pruning(partial(runtime.dead_letters.prune, settings.dead_letter_retention_s), PRUNE_BATCH // 10),
    ]


def _ask_to_prune(dispatcher: Dispatcher) -> None:
    """Have `prune` run again soon; where the housekeeping has no time for it, beat's next run goes on."""
    try:
        dispatcher.ask("prune", expires=2 * PRUNE_FOR_S)
    except Exception as error:  # noqa: BLE001  whatever it is, beat asks too
        logger.warning("Pruning goes on later: %s", describe(error))
