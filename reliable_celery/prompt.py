"""Calls that are made soon, not when the next message comes.

kombu's event loop makes the calls that were asked for, then those of its timers, then waits. What one of
these asks for by `call_soon` waits for the next message or timer, up to a second.

Setting: comes with `reliable_celery.consumer:Consumer`.
"""

from __future__ import annotations

from typing import Any

from celery.worker.consumer import Consumer as CeleryConsumer


class PromptConsumer(CeleryConsumer):
    """Wakes the event loop before it waits, if there are calls to make."""

    def register_with_event_loop(self, hub: Any) -> None:
        """Look before each wait."""
        super().register_with_event_loop(hub)
        hub.on_tick.add(self._wake)

    def _wake(self) -> None:
        hub: Any = self.hub
        if hub._ready and hub._waker is not None:
            hub._waker.wake()
