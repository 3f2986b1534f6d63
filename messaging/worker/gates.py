"""Which handlers need a gate: those with options and those that are paused."""

from __future__ import annotations

from messaging.bus import Handler
from messaging.delivery import Delivery
from messaging.errors import describe
from messaging.options import options_of
from messaging.postgres.attempts import Attempt
from messaging.postgres.gate import Gate, GatedAttempt
from messaging.project.runtime import Runtime
from messaging.worker.dispatcher import Dispatcher, logger


def attempt_at(
    runtime: Runtime, handler: Handler, delivery_id: str, worker: str, *, redelivered: bool
) -> Attempt:
    """Return an attempt at a delivery for a handler."""
    options, pauses = options_of(handler), runtime.pauses.seen()
    if not options.waits and not pauses:
        return Attempt(runtime.engine, delivery_id, worker, redelivered)
    options = runtime.settings.completed(options)
    gate = Gate(runtime.project.handler_names(handler.__name__), options, pauses)
    return GatedAttempt(runtime.engine, delivery_id, worker, redelivered, gate=gate)


def wake_next(dispatcher: Dispatcher, attempt: Attempt) -> None:
    """Send what waited for this attempt's end.

    Also after an attempt that was put aside: what it waits for may have ended before it was seen waiting.
    """
    if not isinstance(attempt, GatedAttempt):
        return
    try:
        dispatcher.send_known(_next(dispatcher.runtime, attempt))
        if attempt.ended_pause:
            dispatcher.ask("relay")
    except Exception as error:  # noqa: BLE001  the delivery itself has ended
        logger.warning("The relay wakes what waited for %s: %s", attempt.id, describe(error))


def _next(runtime: Runtime, attempt: GatedAttempt) -> list[Delivery]:
    woken, gate = [], attempt.gate
    if attempt.lane is not None and gate.options.in_order_by is not None:
        woken += runtime.lanes.wake_head(attempt.lane, gate.names)
    if attempt.has_place and gate.options.max_concurrent is not None:
        place, places = gate.limit(attempt.key), gate.options.max_concurrent
        woken += runtime.limits.wake_for_place(gate.names, attempt.key, place, places)
    return woken
