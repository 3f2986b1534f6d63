"""Celery's task and request classes for event handlers: the row decides, not the message."""

from __future__ import annotations

from typing import Any

from celery import Task

from messaging.texts import cut
from messaging.worker.request import OwnTimeLimits


class DeliveryRequest(OwnTimeLimits):
    """A delivery's message, whose expiry and revocation are ignored.

    A past expiry would keep workers from running it.
    """

    def maybe_expire(self) -> bool:
        """Return False: the row says whether the delivery is still pending."""
        return False

    def revoked(self) -> bool:
        """Return False: all messages of a delivery have its id, and a revoked id would block it for hours.

        An operator discards a delivery instead.
        """
        return False


class HandlerTask(Task):
    """A task whose retries keep showing the event in Flower."""

    abstract = True
    Request: Any = DeliveryRequest

    def signature_from_request(self, request: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Copy the displayed arguments, which Celery drops when it sends a retry."""
        shown = request or self.request
        signature = super().signature_from_request(request, *args, **kwargs)
        return signature.set(argsrepr=cut(shown.argsrepr or ""), kwargsrepr=cut(shown.kwargsrepr or ""))
