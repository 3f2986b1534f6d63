"""The relay's other half: what waits is woken once nothing holds it back any more."""

from __future__ import annotations

import time
from collections.abc import Sequence

from messaging.delivery import Delivery, Waits
from messaging.errors import describe
from messaging.postgres.pauses import Pause, first_stop
from messaging.postgres.waiting import Queue
from messaging.worker.dispatcher import Dispatcher, logger

#: Messages in the events queue above which no more deliveries are woken: an event that is raised now has at
#: most about so many before it.
BACKLOG = 400

#: Seconds before the queue's length is read again.
LOOK_S = 0.2

#: Longest run in seconds; another one is requested, so that other housekeeping gets its turn in between.
WAKE_FOR_S = 3.0


def wake(dispatcher: Dispatcher) -> int:
    """Send what no longer has to wait, only as fast as workers take it; return how many."""
    sent, until = 0, time.monotonic() + WAKE_FOR_S
    while ready := _ready(dispatcher):
        room = BACKLOG - dispatcher.waiting_events()
        woken = _wake(dispatcher, ready, room)
        sent += dispatcher.send_known(woken)
        if not woken and room > 0:
            break
        if time.monotonic() > until:
            _ask_to_go_on(dispatcher)
            break
        if room <= 0:
            time.sleep(LOOK_S)
    return sent


def _ready(dispatcher: Dispatcher) -> list[Queue]:
    """Return the queues of what may go on."""
    queues = dispatcher.runtime.waiting.queues()
    pauses = dispatcher.runtime.pauses.active() if queues else []
    return [queue for queue in queues if _may_go_on(dispatcher, queue, pauses)]


def _may_go_on(dispatcher: Dispatcher, queue: Queue, pauses: Sequence[Pause]) -> bool:
    names = dispatcher.project.all_names(queue.handler)
    return queue.why != Waits.PAUSE or first_stop(pauses, names, queue.event_type) is None


def _wake(dispatcher: Dispatcher, queues: Sequence[Queue], room: int) -> list[Delivery]:
    """Wake about `room` deliveries, the same number from each queue."""
    if room <= 0:
        return []
    each = max(1, room // len(queues))
    return [row for queue in queues for row in dispatcher.runtime.waiting.wake(queue, each)]


def _ask_to_go_on(dispatcher: Dispatcher) -> None:
    try:
        dispatcher.ask("relay", expires=2 * WAKE_FOR_S)
    except Exception as error:  # noqa: BLE001  beat requests it too
        logger.warning("Waiting deliveries are woken later: %s", describe(error))


def without_paused(dispatcher: Dispatcher, due: list[Delivery]) -> list[Delivery]:
    """Put aside those deliveries that are paused, and return the others."""
    runtime, all_names = dispatcher.runtime, dispatcher.project.all_names
    pauses = runtime.pauses.active() if due else []
    paused = {row.id for row in due if first_stop(pauses, all_names(row.handler), row.event_type)}
    if paused:
        runtime.waiting.put_aside(Waits.PAUSE, len(paused), ids=list(paused))
    return [row for row in due if row.id not in paused]
