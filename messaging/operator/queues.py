"""List the queues of a Redis broker, to find messages sent to a mistyped name.

RabbitMQ does not list its queues for clients: use `rabbitmqctl list_queues name messages consumers`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from celery import Celery
from kombu.transport.redis import Channel

#: Longest scan of a broker full of other keys, in seconds.
LOOK_S = 3.0
#: Short-lived queues of Celery's own replies and events.
CELERYS_OWN = (".pidbox", "celeryev.")
BINDINGS = "_kombu.binding."


def waiting(app: Celery) -> dict[str, int]:
    """Return how many messages wait in each queue on the broker; an empty queue does not exist there."""
    with app.connection_for_read() as connection, connection.channel() as channel:
        found: dict[str, int] = {}
        for key in _keys(channel, "list"):
            name = key.partition(channel.sep)[0]  # without its priority
            if not any(part in name for part in CELERYS_OWN):
                found[name] = found.get(name, 0) + int(channel.client.llen(key))
        return found


def listeners(app: Celery) -> set[str]:
    """Return the queues bound to an exchange of another name: those of apps that listen to events."""
    with app.connection_for_read() as connection, connection.channel() as channel:
        return {
            queue
            for key in _keys(channel, "set", f"{BINDINGS}*")
            for queue in _bound(channel, key)
            if queue != key.removeprefix(BINDINGS)
        }


def _bound(channel: Channel, key: str) -> Iterator[str]:
    for member in channel.client.smembers(key):
        yield _text(member).rpartition(channel.sep)[2]


def _keys(channel: Channel, kind: str, pattern: str | None = None) -> Iterator[str]:
    deadline = time.monotonic() + LOOK_S
    for key in channel.client.scan_iter(match=pattern, count=1000, _type=kind):
        yield _text(key)
        if time.monotonic() > deadline:
            return


def _text(value: Any) -> str:
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)
