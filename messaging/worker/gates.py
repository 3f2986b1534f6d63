"""Which handlers need a gate: those with options and those that are paused."""

from __future__ import annotations

from messaging.bus import Handler
from messaging.errors import describe
from messaging.options import options_of
from messaging.postgres.attempts import Attempt
from messaging.postgres.gate import Gate, GatedAttempt
from messaging.postgres.transaction import DATABASE_ERRORS
from messaging.project.runtime import Runtime
from messaging.worker.dispatcher import Dispatcher, logger


def attempt_at(
    runtime: Runtime, handler: Handler, delivery_id: str, worker: str, *, redelivered: bool
) -> Attempt:
    """Return an attempt at a delivery for a handler."""
    options, pauses = options_of(handler), runtime.pauses.seen()
    if options.any or pauses:
        gate = Gate(runtime.project.handler_names(handler.__name__), options, pauses)
        return GatedAttempt(runtime.engine, delivery_id, worker, redelivered, gate=gate)
    return Attempt(runtime.engine, delivery_id, worker, redelivered)


def wake_next(dispatcher: Dispatcher, attempt: Attempt) -> None:
    """Send what waited for this attempt's end.

    Also after an attempt that was put aside: what it waits for may have ended before it was seen waiting.
    """
    if not isinstance(attempt, GatedAttempt) or attempt.lane is None:
        return
    try:
        dispatcher.send_known(dispatcher.runtime.lanes.wake_head(attempt.lane, attempt.gate.names))
    except DATABASE_ERRORS as error:
        logger.warning("The relay wakes what waited for %s: %s", attempt.id, describe(error))
