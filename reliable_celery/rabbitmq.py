"""Record messages that RabbitMQ itself dead-lettered, after too many returns or a rejection."""

# mypy: disable-error-code="no-untyped-call"
# kombu is untyped in parts, although it says otherwise.

from __future__ import annotations

from collections.abc import Container

from celery import Celery
from kombu import Queue

from reliable_celery.dead_letters import DeadLetterStore
from reliable_celery.letters import letter_of

REASON = "set aside by the broker"


def collect_dead_letters(
    app: Celery, queue: Queue, store: DeadLetterStore, limit: int = 500, may_expire: Container[str] = ()
) -> int:
    """Record the messages on RabbitMQ's dead-letter queue, then remove them; return how many.

    `queue` is declared first. At most `limit` messages are taken: call this periodically. Expired messages
    of the tasks named in `may_expire` are dropped.
    """
    collected = 0
    with app.connection_for_read() as connection, connection.channel() as channel:
        bound = queue(channel)
        bound.declare()
        while collected < limit and (message := bound.get(accept=None)):
            headers = message.headers or {}
            reason = _reason(headers.get("x-death"))
            if reason != "expired" or headers.get("task") not in may_expire:
                store.add(letter_of(message, REASON, f"RabbitMQ set it aside: {reason}"))
            message.ack()
            collected += 1
    return collected


def _reason(deaths: object) -> str:
    """Return why RabbitMQ set a message aside; who puts one on the queue itself may claim anything."""
    match deaths:
        case [{"reason": str(reason)}, *_]:
            return reason
    return "rejected"
