"""RabbitMQ: leave its messages packed, and record those that it dead-lettered itself."""

# mypy: disable-error-code="no-untyped-call"
# kombu is untyped in parts, although it says otherwise.

from __future__ import annotations

import sys
from collections.abc import Container
from typing import Any

from celery import Celery
from kombu import Queue
from kombu.transport import pyamqp

from reliable_celery.compression import refuse_compression
from reliable_celery.dead_letters import DeadLetterStore
from reliable_celery.letters import letter_of

REASON = "set aside by the broker"


class PackedMessage(pyamqp.Message):
    """A message whose compressed body stays packed, and is noted in `errors`, where consumers look."""

    def __init__(self, msg: Any, channel: Any = None, **kwargs: Any) -> None:
        try:
            refuse_compression(msg.properties.get("application_headers"))
        except ValueError:
            self.errors = [sys.exc_info()]  # with one, kombu unpacks nothing
        super().__init__(msg, channel=channel, **kwargs)


def leave_packed(channel: Any) -> None:
    """Have the messages of a channel stay packed, whatever their size."""
    channel.Message = PackedMessage


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
        leave_packed(channel)
        while collected < limit and (raw := channel.basic_get(queue.name)) is not None:
            message = channel.message_to_python(raw)  # `Queue.get` would raise what is wrong with it
            reason, task = _reason(message.headers.get("x-death")), message.headers.get("task")
            if reason != "expired" or not isinstance(task, str) or task not in may_expire:
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
