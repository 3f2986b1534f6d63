"""Connections to RabbitMQ that are closed within a second, also if the node does not answer.

py-amqp waits for the node's agreement to the end of each channel and connection, for ever or for the whole
`read_timeout`. kombu closes a connection before it turns to the next address of a list, so a frozen node
would hold up worker and sender twice for each of their connections.

Setting: `broker_transport_options = {"on_open": close_soon, …}` with an `amqp://` or `amqps://` URL.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

#: Seconds for a node to agree.
FAREWELL_S = 1.0


def close_soon(connection: Any) -> None:
    """Have an open py-amqp connection wait no longer than `FAREWELL_S` when it or a channel is closed."""
    drain: Callable[..., Any] = connection.drain_events

    def drain_events(timeout: float | None = None) -> Any:
        if timeout is not None or not _is_closing(connection):
            return drain(timeout)
        try:
            return drain(FAREWELL_S)
        except TimeoutError:
            connection.collect()  # so that what is closed after this does not wait again
            raise

    connection.drain_events = drain_events


def _is_closing(connection: Any) -> bool:
    """Return whether the connection, which is its own channel 0, or another channel is being closed."""
    return any(channel.is_closing for channel in (connection.channels or {}).values())
