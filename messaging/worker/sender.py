"""Send deliveries to their handlers' tasks once they are committed."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from celery import Celery
from kombu.exceptions import OperationalError

from messaging.delivery import Delivery
from messaging.errors import InvalidMessage, describe
from messaging.project import Project
from messaging.runtime import Runtime
from messaging.texts import cut
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
    """Send a message per delivery and return how many went out; what did not, the relay will send.

    Stops where the broker is lost. Any other error is one delivery's own, and the next ones go on.
    """
    sent = 0
    deliveries = list(deliveries)
    if not deliveries:
        return sent
    try:
        with app.producer_or_acquire() as producer:
            for delivery in deliveries:
                sent += _sent(app, runtime, delivery, producer)
    except _broker_is_lost(app) as error:
        logger.warning("The broker is lost: %s", error)
    if sent < len(deliveries):
        logger.warning("Sent %d of %d deliveries, the relay will send the rest", sent, len(deliveries))
    return sent


def _broker_is_lost(app: Celery) -> tuple[type[Exception], ...]:
    errors: tuple[type[Exception], ...] = (
        app.producer_pool.connections.connection.recoverable_connection_errors
    )
    return OperationalError, *errors  # kombu's own, where it cannot connect: each try takes seconds


def _sent(app: Celery, runtime: Runtime, delivery: Delivery, producer: Any) -> bool:
    try:
        _send_one(app, runtime, delivery, producer)
    except _broker_is_lost(app):
        raise
    except Exception:
        logger.exception("Delivery %s could not be sent", delivery.id)
        return False
    return True


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
        argsrepr=cut(shown_event(runtime.project, delivery.event_type, delivery.payload)),
        kwargsrepr="{}",
        ignore_result=True,
        add_to_parent=False,
        retry=False,
    )


def shown_event(project: Project, event_type: str, payload: Mapping[str, Any]) -> str:
    """Return a stored event as it is shown: its repr, or its name and why it cannot be built or shown."""
    kind = project.bus.event_types.get(event_type)
    try:
        return repr(from_dict(kind, payload, ignore_unknown=True)) if kind else f"{event_type}(**{payload!r})"
    except InvalidMessage as error:
        return f"{event_type}: {error}"
    except Exception as error:  # noqa: BLE001  an event's own code may raise anything
        return f"{event_type}: {describe(error)}"
