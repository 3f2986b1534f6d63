"""Acknowledge and release messages; acknowledgements travel with the next trip for messages."""

# mypy: disable-error-code="no-untyped-call, assignment, no-any-return, misc"
# kombu is untyped in parts, and gives attributes the type of their first value.

from __future__ import annotations

from collections import deque
from time import monotonic
from typing import Any

from kombu.transport import redis as stock
from kombu.transport import virtual

from reliable_celery.redis.adoption import AdoptingChannel
from reliable_celery.redis.envelope import Message
from reliable_celery.redis.later import LaterChannel
from reliable_celery.redis.restore import READ, Pushes, read_entry
from reliable_celery.redis.strays import StraysChannel

ACK_DELAY = 0.1  # seconds that an acknowledgement waits for others, while the worker is busy
MAX_OVERDUE = 500  # messages requeued in one sweep; the worker's own messages wait for it
MAX_ACKS = 1000  # acknowledgements per trip; Lua can unpack some 8,000 values


class QoS(stock.QoS):
    """Messages arrive registered; acknowledgements wait for the next trip."""

    def append(self, message: Message, delivery_tag: str) -> None:
        if str(delivery_tag).startswith(self.channel.tag_prefix):
            virtual.QoS.append(self, message, delivery_tag)
        else:
            super().append(message, delivery_tag)

    def ack(self, delivery_tag: str) -> None:
        if self.channel.acks_can_wait:
            self.channel.ack_later(delivery_tag)
            virtual.QoS.ack(self, delivery_tag)
        else:
            super().ack(delivery_tag)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        if not requeue:
            self.ack(delivery_tag)
            return
        try:
            super().reject(delivery_tag, requeue=True)
        except Exception:  # Celery logs a lost connection, and may go on with this one
            self.channel.strays.append(delivery_tag)
            virtual.QoS.ack(self, delivery_tag)
            raise

    def restore_visible(self, start: int = 0, num: int | None = 10, interval: int = 10) -> None:  # noqa: ARG002  as kombu
        """Requeue messages not acknowledged in time by Redis' clock; kombu uses the worker's."""
        self._vrestore_count += 1
        if (self._vrestore_count - 1) % (interval or 1):
            return
        self.channel.adopt(self.channel.acknowledged_queues)
        self.channel.give_back_due()
        with self.channel.conn_or_acquire() as client:
            self.channel.give_back(self.channel.overdue(client, num or MAX_OVERDUE), client)

    def restore_unacked(self, client: Any = None) -> None:
        self.channel.flush_acks()
        super().restore_unacked(client)

    def restore_by_tag(self, tag: str | bytes, client: Any = None, leftmost: bool = False) -> None:
        """Requeue one message; anything else is first wrapped in one."""
        pushes = Pushes()
        with self.channel.conn_or_acquire(client) as client:
            keys, most = (self.unacked_key, self.unacked_index_key), self.channel.connection.max_item_bytes
            value = client.eval(READ, 2, *keys, tag, most)
            if value is not None:
                self.channel._do_restore_message(*read_entry(value), pushes, leftmost)
            if value is None or pushes.keys:
                pushes.move(client, *keys, tag)


class SettlingChannel(LaterChannel, StraysChannel, AdoptingChannel):
    """A channel that collects acknowledgements, and releases messages that it cannot settle."""

    QoS = QoS
    ack_until = 0.0  # monotonic seconds; until then acknowledgements wait for others

    def __init__(self, connection: Any, **kwargs: Any) -> None:
        self.acks: deque[str] = deque()
        super().__init__(connection, **kwargs)

    @property
    def acks_can_wait(self) -> bool:
        """Whether a trip will follow without a call by the application."""
        return bool(self.connection and self.connection.cycle.in_loop and self.active_queues)

    def ack_later(self, tag: str) -> None:
        """Acknowledge with the next trip."""
        if not self.acks:
            self.ack_until = monotonic() + ACK_DELAY
        self.acks.append(tag)

    def take_acks(self) -> list[str]:
        """Return the acknowledgements for the next trip to carry."""
        return [self.acks.popleft() for _ in range(min(len(self.acks), MAX_ACKS))]

    def held_tags(self) -> list[str]:
        """Return the tags of all messages that this channel has not yet settled in Redis."""
        return [*super().held_tags(), *self.acks]

    def flush_acks(self) -> None:
        """Send the acknowledgements that wait for a trip."""
        tags = list(self.acks)
        if tags:
            with self.conn_or_acquire() as client, client.pipeline() as pipe:
                pipe.hdel(self.unacked_key, *tags).zrem(self.unacked_index_key, *tags).execute()
        for _ in tags:
            self.acks.popleft()

    def forget(self, delivery_tag: str) -> None:
        """Leave a message to the visibility timeout, and free its place in the prefetch."""
        self.strays.append(delivery_tag)
        self.attempt(lambda: self.disown(delivery_tag))
        virtual.QoS.ack(self.qos, delivery_tag)
