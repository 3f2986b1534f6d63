"""Support for the solo pool, in which the event loop runs the tasks itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from celery.concurrency.solo import TaskPool as SoloPool
from celery.worker.consumer import Consumer as CeleryConsumer

from reliable_celery.results import ResultBackend


class SoloConsumer(CeleryConsumer):
    """Settles messages between turns of the event loop; with other pools it is Celery's consumer."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.is_solo and isinstance(self.app.backend, ResultBackend):
            self.app.backend.confirm_later(self.call_soon)

    @property
    def is_solo(self) -> bool:
        """Whether tasks run in this thread."""
        return isinstance(self.pool, SoloPool)

    def call_soon_ack(self, p: Callable[..., object], *args: Any, **kwargs: Any) -> Any:
        """Settle a message at once: a stopping worker's loop may not turn again."""
        if not self.is_solo:
            return super().call_soon_ack(p, *args, **kwargs)
        p(*args, **kwargs)
        return p

    def stop(self) -> None:
        """Settle the last answered message while there is still a connection."""
        if isinstance(self.app.backend, ResultBackend):
            self.app.backend.confirm()
        super().stop()
