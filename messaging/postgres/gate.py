"""An attempt that asks first whether its delivery may run now, and puts it aside if not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from messaging.delivery import Delivery, Waits
from messaging.postgres.attempts import Attempt
from messaging.postgres.pauses import Pause, first_stop
from messaging.postgres.transaction import Transaction
from messaging.postgres.waiting import Wait, hold


@dataclass(frozen=True)
class Gate:
    """What may make a handler's deliveries wait."""

    names: Sequence[str]  # the handler's, with those that it had before
    pauses: Sequence[Pause] = ()

    def wait(self, _transaction: Transaction, delivery: Delivery) -> Wait | None:
        """Return why a claimed delivery must wait; None if it may run."""
        if first_stop(self.pauses, self.names, delivery.event_type):
            return Wait(Waits.PAUSE)
        return None


@dataclass
class GatedAttempt(Attempt):
    """An attempt of a handler that has a gate."""

    gate: Gate = field(default_factory=lambda: Gate(()))

    def claim(self, transaction: Transaction) -> Delivery | None:
        """Lock the delivery and return it; None also when it has to wait, which uses up no attempt."""
        delivery = super().claim(transaction)
        if delivery is None or delivery.handler not in self.gate.names:
            return delivery
        wait = self.gate.wait(transaction, delivery)
        if wait is None:
            return delivery
        hold(transaction, self.id, wait)
        return None
