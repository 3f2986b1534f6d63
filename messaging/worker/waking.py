"""The relay's other half: what waits is woken once nothing holds it back any more."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from messaging.delivery import Delivery, Waits
from messaging.options import NO_OPTIONS, HandlerOptions, options_of
from messaging.postgres.breakers import Stopped, stop_of
from messaging.postgres.pauses import Pause, first_stop
from messaging.postgres.waiting import Queue
from messaging.project.runtime import Runtime
from messaging.worker.dispatcher import Dispatcher

#: Seconds before the queue's length is read again.
LOOK_S = 0.2

#: As many as there is room for.
ALL = 10**9

#: Deliveries that are woken in one run to see whether their key has a place: usually whoever leaves a place
#: wakes the next one.
KEYED = 50

#: Seconds by which the relay's next run may be late.
LATE_S = 1.0

#: Seconds after which a run wakes no more, so that what it has woken can still be sent in the relay's time.
#: Another run is requested, and other housekeeping gets its turn in between.
RUN_FOR_S = 3.0


def longest_run_s(runtime: Runtime) -> float:
    """Return how long the relay may wake what waits: all that it does fits into a task's time limit."""
    return min(RUN_FOR_S, runtime.settings.task_time_limit_s / 6)


def wake(dispatcher: Dispatcher) -> int:
    """Send what no longer has to wait, only as fast as workers take it; return how many."""
    longest_s = longest_run_s(dispatcher.runtime)
    sent, until, first = 0, time.monotonic() + longest_s, True
    while queues := dispatcher.runtime.waiting.queues():
        room = dispatcher.room()
        woken = _wake(dispatcher, queues, room, first) if room > 0 else []
        first = first and room <= 0
        sent += dispatcher.send_known(woken)
        if not woken and room > 0:
            break
        if time.monotonic() > until:
            dispatcher.go_on_later("relay", longest_s)
            break
        if room <= 0:
            time.sleep(LOOK_S)
    return sent


def _wake(dispatcher: Dispatcher, queues: Sequence[Queue], room: int, first: bool) -> list[Delivery]:
    """Wake about `room` of those deliveries that may go on, the same number from each queue."""
    runtime, each = dispatcher.runtime, max(1, room // len(queues))
    stops = Stops(runtime.pauses.active(), runtime.breakers.stopped())
    woken: list[Delivery] = []
    soon_s = runtime.settings.relay_interval_s + LATE_S
    for queue in queues:
        names, options = _handler_of(dispatcher, queue)
        allowed = min(each, stops.allowed(queue, names, options, first))
        if allowed > 0:
            timed = queue.why == Waits.TIME or (queue.why == Waits.RATE and options.rate is not None)
            woken += runtime.waiting.wake(queue, allowed, soon_s if timed else None)
    if any(queue.why == Waits.ORDER for queue in queues):
        woken += runtime.lanes.wake_heads(each)
    return woken


def _handler_of(dispatcher: Dispatcher, queue: Queue) -> tuple[tuple[str, ...], HandlerOptions]:
    """Return the handler's names, and its options in this release."""
    names = dispatcher.project.all_names(queue.handler)
    handler = dispatcher.project.bus.event_handlers.get(names[0])
    options = options_of(handler) if handler else NO_OPTIONS
    return names, dispatcher.runtime.settings.completed(options)


@dataclass(frozen=True)
class Stops:
    """What is stopped now."""

    pauses: Sequence[Pause]
    breakers: Mapping[str, Stopped]

    def allowed(self, queue: Queue, names: Sequence[str], options: HandlerOptions, first: bool) -> int:
        """Return how many deliveries of a queue may go on.

        Some are woken only to have a worker look whether there is a place, and only once in a run.
        """
        match queue.why:
            case Waits.PAUSE:
                return 0 if first_stop(self.pauses, names, queue.event_type) else ALL
            case Waits.ORDER if options.in_order_by is not None:
                return 0  # one by one, the first of each lane
            case Waits.PLACE if options.max_concurrent is not None:
                return first * (options.max_concurrent if options.limit_by is None else KEYED)
            case Waits.BREAKER if options.breaker and (stopped := stop_of(self.breakers, names)):
                return 0 if stopped.is_open else first * (options.breaker.trials or 1)
        return ALL


def without_paused(dispatcher: Dispatcher, due: list[Delivery]) -> list[Delivery]:
    """Put aside those deliveries that are paused, and return the others."""
    runtime, all_names = dispatcher.runtime, dispatcher.project.all_names
    pauses = runtime.pauses.active() if due else []
    paused = {row.id for row in due if first_stop(pauses, all_names(row.handler), row.event_type)}
    if paused:
        runtime.waiting.put_these_aside(Waits.PAUSE, list(paused))
    return [row for row in due if row.id not in paused]
