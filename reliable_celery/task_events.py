"""Task events leave a worker some at a time; Celery sends one message for nearly each of them."""

from __future__ import annotations

from time import monotonic

from celery.worker.consumer import Consumer as CeleryConsumer

FLUSH_AFTER_S = 0.1  # seconds that an event waits for company; Flower shows it so much later


class BatchingConsumer(CeleryConsumer):
    """Sends what happened in a tenth of a second in one message: each holds up the loop for a round trip.

    Celery's dispatcher keeps the events (24 at most) and calls `on_send_event_buffered` for each.
    """

    _flush_due = 0.0  # monotonic seconds

    def on_send_event_buffered(self) -> None:
        """Send soon. Events also come from the threads of a pool, and only `call_soon` is made for those."""
        if self.hub and monotonic() > self._flush_due + FLUSH_AFTER_S:
            self._flush_due = monotonic() + FLUSH_AFTER_S
            self.hub.call_soon(self.hub.call_later, FLUSH_AFTER_S, self._flush_events)

    def _flush_events(self) -> None:
        self._flush_due = 0.0
        super()._flush_events()

    def shutdown(self) -> None:
        """Send the last ones too: of tasks that ended while the pool was being closed."""
        super()._flush_events()
        super().shutdown()
