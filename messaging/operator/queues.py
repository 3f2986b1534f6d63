"""The queues of a broker: how much waits in them, for how long, and who listens.

RabbitMQ does not list its queues for clients: use `rabbitmqctl list_queues name messages consumers`. It shows
no message without handing it out either, and no `head_message_timestamp` of a quorum queue, so the age of the
oldest is known on Redis alone.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from celery import Celery
from kombu.transport.redis import Channel

from messaging.messages import SENT_AT

#: Longest scan of a broker full of other keys, in seconds.
LOOK_S = 3.0
#: Short-lived queues of Celery's own replies and events.
CELERYS_OWN = (".pidbox", "celeryev.")
#: In the names of lists that are no queues of work: those, and the transport's own.
NO_WORK = (*CELERYS_OWN, "unacked_")
BINDINGS = "_kombu.binding."


def waiting(app: Celery) -> dict[str, int]:
    """Return how many messages wait in each queue on the broker; an empty queue does not exist there."""
    with app.connection_for_read() as connection, connection.channel() as channel:
        found: dict[str, int] = {}
        for key in _keys(channel, "list"):
            name = key.partition(channel.sep)[0]  # without its priority
            if not any(part in name for part in NO_WORK):
                found[name] = found.get(name, 0) + int(channel.client.llen(key))
        return found


@dataclass(frozen=True)
class Backlog:
    """What waits in one queue."""

    count: int  # without what workers hold
    oldest_s: float | None = (
        None  # seconds since it was sent, by its sender's clock; None if that is not known
    )


def backlogs(app: Celery, names: Iterable[str]) -> dict[str, Backlog]:
    """Return what waits in these queues, on any broker."""
    with app.connection_for_read() as connection:
        return {name: _backlog(connection, name) for name in names}


def load(app: Celery, names: Iterable[str]) -> int:
    """Return how many messages of these queues wait or are being worked on: a number to scale workers by.

    Without messages that wait for their time. RabbitMQ tells a client only what waits, so there the messages
    that workers hold are not counted.
    """
    waits = sum(backlog.count for backlog in backlogs(app, names).values())
    with app.connection_for_read() as connection, connection.channel() as channel:
        if not isinstance(channel, Channel):
            return waits
        return waits + int(channel.client.zcard(channel.unacked_index_key))


def _backlog(connection: Any, name: str) -> Backlog:
    # A channel each: RabbitMQ closes a channel when it is asked for a missing queue.
    with connection.channel() as channel:
        try:
            count = channel.queue_declare(queue=name, passive=True).message_count
        except connection.channel_errors:  # Redis has no empty queues
            return Backlog(0)
        return Backlog(count, _oldest_s(channel, name) if isinstance(channel, Channel) else None)


def _oldest_s(channel: Channel, name: str) -> float | None:
    """Return the age of the message that is taken next: of a command, or of an event for another app."""
    found = channel.client.lindex(name, -1)
    if found is None:
        return None
    try:
        message = json.loads(found)
        at = message["headers"].get(SENT_AT)
        if at is None:
            body = base64.b64decode(message["body"]) if _is_encoded(message) else message["body"]
            at = datetime.fromisoformat(json.loads(body)["time"]).timestamp()
        return max(0.0, time.time() - float(at))
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError):  # anybody may have sent it
        return None


def _is_encoded(message: Any) -> bool:
    return bool(message.get("properties", {}).get("body_encoding") == "base64")


def listeners(app: Celery) -> set[str]:
    """Return the queues bound to an exchange of another name: those of apps that listen to events."""
    with app.connection_for_read() as connection, connection.channel() as channel:
        return {
            queue
            for key in _keys(channel, "set", f"{BINDINGS}*")
            for queue in _bound(channel, key)
            if queue != key.removeprefix(BINDINGS) and not any(part in queue for part in CELERYS_OWN)
        }


def _bound(channel: Channel, key: str) -> Iterator[str]:
    for member in channel.client.smembers(key):
        yield _text(member).rpartition(channel.sep)[2]


def _keys(channel: Channel, kind: str, pattern: str | None = None) -> Iterator[str]:
    deadline, cursor, more = time.monotonic() + LOOK_S, 0, True
    while more and time.monotonic() < deadline:
        cursor, keys = channel.client.scan(cursor, match=pattern, count=1000, _type=kind)
        yield from map(_text, keys)
        more = cursor != 0


def _text(value: Any) -> str:
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)
