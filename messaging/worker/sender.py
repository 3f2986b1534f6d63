"""Send deliveries to their handlers' tasks once they are committed."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from celery import Celery

from messaging.delivery import Delivery
from messaging.errors import InvalidMessage
from messaging.project import Project
from messaging.runtime import Runtime
from messaging.validation import from_dict
from messaging.worker.announcements import nudge

logger = logging.getLogger(__name__)


def after_commit(app: Celery, runtime: Runtime, deliveries: Iterable[Delivery]) -> None:
    """Set going what a commit brought: a message per delivery, and word to other apps.

    Nothing that goes wrong here may be the answer to a command that is committed; the relay makes up for it.
    """
    try:
        send(app, runtime, deliveries)
        nudge(app, runtime)
    except Exception:
        logger.exception("Sent nothing or not all after a commit; the relay will")


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
        argsrepr=shown_event(runtime.project, delivery.event_type, delivery.payload),
        kwargsrepr="{}",
        ignore_result=True,
        add_to_parent=False,
        retry=False,
    )


def shown_event(project: Project, event_type: str, payload: Mapping[str, Any]) -> str:
    """Return a stored event as it is shown: its repr, or its name and why it cannot be built."""
    kind = project.bus.event_types.get(event_type)
    try:
        return repr(from_dict(kind, payload, ignore_unknown=True)) if kind else f"{event_type}(**{payload!r})"
    except InvalidMessage as error:
        return f"{event_type}: {error}"
