"""Re-run failed deliveries in turns, at a limited rate."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from celery import Celery

from messaging.operator.actions import DeliveryActions
from messaging.operator.filters import DeliveryFilter
from messaging.runtime import Runtime
from messaging.worker.housekeeping import send_known

#: Deliveries that one transaction puts back; Ctrl-C waits for at most one.
TURN = 200


@dataclass
class Rerun:
    """Puts back what failed before it began, so that it ends even where everything fails again."""

    app: Celery
    runtime: Runtime
    actor: str
    pause: Callable[[float], object] = time.sleep
    unsent: int = field(default=0, init=False)  # of those that were put back

    def run(self, chosen: DeliveryFilter, limit: int, rate: float | None = None) -> Iterator[int]:
        """Yield how many deliveries each turn put back, at most `rate` a second and `limit` in all."""
        actions = DeliveryActions(self.runtime.engine, self.actor)
        before, turn = actions.clock(), TURN if rate is None else max(1, min(TURN, int(rate)))
        while limit > 0:
            started, wanted = time.monotonic(), min(turn, limit)
            grace_s = self.runtime.settings.relay_grace_s
            deliveries = actions.put_back(chosen, before, wanted, grace_s)
            self.unsent += len(deliveries) - send_known(self.app, self.runtime, deliveries)
            if deliveries:
                yield len(deliveries)
            limit -= len(deliveries)
            if len(deliveries) < wanted:
                return
            if rate is not None and limit > 0:
                self.pause(max(0.0, turn / rate - (time.monotonic() - started)))

    def said(self, put_back: int) -> str:
        """Return what came of it, for the operator."""
        if not self.unsent:
            return f"{put_back:,} put back and sent."
        return (
            f"{put_back:,} put back, {put_back - self.unsent:,} of them sent. The relay will send the rest"
            " once the broker is back; those whose handler this release lacks have failed again."
        )
