"""RabbitMQ: take every message, unread if need be, and record those that it dead-lettered itself."""

# mypy: disable-error-code="no-untyped-call"
# kombu is untyped in parts, although it says otherwise.

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Container
from traceback import walk_tb
from typing import Any

from amqp import Message as AmqpMessage
from celery import Celery
from kombu import Queue
from kombu.transport import pyamqp

from reliable_celery.compression import payload_of, refuse_compression
from reliable_celery.dead_letters import DeadLetterStore
from reliable_celery.letters import letter_of

logger = logging.getLogger(__name__)

REASON = "set aside by the broker"
BEFORE_PROPERTIES, NO_PROPERTIES = 12, bytes(2)  # bytes of a frame with a message's properties; their flags
#: What py-amqp raises for properties that RabbitMQ passes on: a text that is not UTF-8, a time after the year
#: 9999, tables nested too deep. It would end the worker, and the next one that gets it; an `OSError` of a
#: time after the year 2**31 would pass for a lost connection, for ever.
UNREADABLE = (ValueError, OverflowError, RecursionError, OSError)


class PackedMessage(pyamqp.Message):
    """A message whose compressed body stays packed, and is noted in `errors`, where consumers look."""

    def __init__(self, msg: Any, channel: Any = None, **kwargs: Any) -> None:
        try:
            refuse_compression(msg.properties.get("application_headers"))
        except ValueError:
            self.errors = [sys.exc_info()]  # with one, kombu unpacks nothing
        super().__init__(msg, channel=channel, **kwargs)

    def _decode(self) -> Any:
        return payload_of(self)


def take_every_message(channel: Any) -> None:
    """Have a channel hand out messages packed, whatever their size, and without unreadable properties."""
    channel.Message = PackedMessage
    channel.connection.on_inbound_frame = _skipping_properties(channel.connection.on_inbound_frame)


def _skipping_properties(on_frame: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def read(frame: tuple[int, int, Any]) -> Any:
        try:
            return on_frame(frame)
        except UNREADABLE as error:
            if not _is_of_properties(error):
                raise
            logger.warning("Took a message without its properties, which cannot be read: %r", error)
        kind, number, content = frame
        return on_frame((kind, number, bytes(content[:BEFORE_PROPERTIES]) + NO_PROPERTIES))

    return read


def _is_of_properties(error: BaseException) -> bool:
    """Return whether py-amqp raised it; consumers are called there, too."""
    reads = AmqpMessage.inbound_header.__code__
    return any(frame.f_code is reads for frame, _ in walk_tb(error.__traceback__))


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
        take_every_message(channel)
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
