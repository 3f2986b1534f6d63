"""Send task events in batches; Celery sends one message for nearly each of them."""

from __future__ import annotations

from time import monotonic

from celery.worker.consumer import Consumer as CeleryConsumer

FLUSH_AFTER_S = 0.1  # seconds that an event waits for others; Flower shows it that much later
MAX_EVENTS = 200  # in one message; Celery's limit, 24, is reached by eight tasks


class BatchingConsumer(CeleryConsumer):
    """Sends the events of a tenth of a second in one message: each message blocks the loop for a round trip.

    Celery's dispatcher keeps the events and calls `on_send_event_buffered` for each.
    """

    _flush_due = 0.0  # monotonic seconds

    def on_send_event_buffered(self) -> None:
        """Send soon. Events also come from a pool's threads, and only `call_soon` is thread-safe."""
        if self.hub and monotonic() > self._flush_due + FLUSH_AFTER_S:
            self._flush_due = monotonic() + FLUSH_AFTER_S
            self.event_dispatcher.buffer_limit = MAX_EVENTS
            self.hub.call_soon(self.hub.call_later, FLUSH_AFTER_S, self._flush_events)

    def _flush_events(self) -> None:
        self._flush_due = 0.0
        super()._flush_events()

    def shutdown(self) -> None:
        """Also send the events of tasks that ended while the pool was being closed."""
        super()._flush_events()
        super().shutdown()
