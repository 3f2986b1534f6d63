"""An attempt that asks first whether its delivery may run now, and puts it aside if not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from messaging.delivery import Delivery, Waits
from messaging.options import NO_OPTIONS, HandlerOptions
from messaging.postgres.attempts import CLAIM_COLUMNS, CLAIM_FROM, Attempt
from messaging.postgres.order import OPEN
from messaging.postgres.pauses import Pause, first_stop
from messaging.postgres.transaction import Statement, Transaction
from messaging.postgres.waiting import Wait, hold

#: As `CLAIM`, and whether an earlier delivery of the same lane is open. It need not be as fresh as the lock:
#: one that was open may be done by now, but none becomes open again, and none is inserted before it.
CLAIM_IN_ORDER = Statement(
    f"""
SELECT {CLAIM_COLUMNS}, lane, EXISTS (
    SELECT FROM deliveries earlier WHERE earlier.lane = deliveries.lane AND earlier.handler = ANY($2)
    AND earlier.position < deliveries.position AND earlier.{OPEN})
{CLAIM_FROM}""",
    *("uuid", "text[]"),
)


@dataclass(frozen=True)
class Gate:
    """What may make a handler's deliveries wait."""

    names: Sequence[str]  # the handler's, with those that it had before
    options: HandlerOptions = NO_OPTIONS
    pauses: Sequence[Pause] = ()


@dataclass
class GatedAttempt(Attempt):
    """An attempt of a handler that has a gate."""

    gate: Gate = field(default_factory=lambda: Gate(()))
    lane: str | None = None
    is_blocked: bool = False  # by an earlier delivery of its lane, when it was claimed

    def claim(self, transaction: Transaction) -> Delivery | None:
        """Lock the delivery and return it; None also when it has to wait, which uses up no attempt."""
        rows = transaction.read(CLAIM_IN_ORDER, (self.id, list(self.gate.names)))
        if not rows:
            return None
        *facts, self.has_open, self.lane, self.is_blocked = rows[0]
        self.delivery = Delivery(*facts)
        if self.delivery.handler not in self.gate.names:
            return self.delivery
        wait = self._wait()
        if wait is None:
            return self.delivery
        hold(transaction, self.id, wait)
        return None

    def _wait(self) -> Wait | None:
        """Return why the claimed delivery must wait; None if it may run."""
        delivery, gate = self.delivery, self.gate
        if delivery and first_stop(gate.pauses, gate.names, delivery.event_type):
            return Wait(Waits.PAUSE)
        if self.is_blocked and gate.options.in_order_by:
            return Wait(Waits.ORDER)
        return None
