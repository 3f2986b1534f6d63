"""Send deliveries to their handlers' tasks once they are committed."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from celery import Celery

from messaging.delivery import Delivery
from messaging.errors import InvalidMessage
from messaging.runtime import Runtime
from messaging.validation import from_dict

logger = logging.getLogger(__name__)


def send(app: Celery, runtime: Runtime, deliveries: Iterable[Delivery]) -> int:
    """Send a message per delivery and return how many went out; what did not, the relay will send."""
    sent = 0
    deliveries = list(deliveries)
    if not deliveries:
        return sent
    try:
        with app.producer_or_acquire() as producer:
            for delivery in deliveries:
                _send_one(app, runtime, delivery, producer)
                sent += 1
    except app.producer_pool.connections.connection.recoverable_connection_errors as error:
        logger.warning(
            "Sent %d of %d deliveries, the relay will send the rest: %s", sent, len(deliveries), error
        )
    return sent


def _send_one(app: Celery, runtime: Runtime, delivery: Delivery, producer: Any) -> None:
    app.send_task(
        runtime.project.handler_task(delivery.handler),
        task_id=delivery.id,
        queue=runtime.project.events_queue,
        producer=producer,
        # The row counts the attempts; with them the back-off goes on where it was.
        retries=delivery.attempts,
        root_id=delivery.correlation_id,
        parent_id=delivery.causation_id,
        argsrepr=_shown(runtime, delivery),
        kwargsrepr="{}",
        ignore_result=True,
        add_to_parent=False,
        retry=False,
    )


def _shown(runtime: Runtime, delivery: Delivery) -> str:
    """Return the event as Flower shows it."""
    kind = runtime.project.bus.event_types.get(delivery.event_type)
    try:
        return repr(from_dict(kind, delivery.payload, ignore_unknown=True)) if kind else delivery.event_type
    except InvalidMessage as error:
        return f"{delivery.event_type}: {error}"
