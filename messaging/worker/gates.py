"""Which handlers need a gate: those that are paused. All others make plain attempts."""

from __future__ import annotations

from messaging.bus import Handler
from messaging.postgres.attempts import Attempt
from messaging.postgres.gate import Gate, GatedAttempt
from messaging.project.runtime import Runtime


def attempt_at(
    runtime: Runtime, handler: Handler, delivery_id: str, worker: str, *, redelivered: bool
) -> Attempt:
    """Return an attempt at a delivery for a handler."""
    if pauses := runtime.pauses.seen():
        gate = Gate(runtime.project.handler_names(handler.__name__), pauses)
        return GatedAttempt(runtime.engine, delivery_id, worker, redelivered, gate=gate)
    return Attempt(runtime.engine, delivery_id, worker, redelivered)
