"""Waiting for messages without popping: Redis tells when a list changes, by client-side caching.

`EXISTS` on a tracking connection makes Redis push one notice when any of the lists changes. One connection
waits for all queues and priorities, and nothing is popped by a worker that may die before it registers it.
"""

from __future__ import annotations

import logging
from time import monotonic
from typing import Any

from redis.exceptions import ResponseError

logger = logging.getLogger(__name__)


class News:
    """What one connection knows of whether its lists have changed."""

    def __init__(self) -> None:
        #: Monotonic seconds. Until then the lists are empty, unless Redis tells otherwise.
        self.look_at = 0.0

    def look_now(self) -> None:
        """Look at the lists with the next trip, told or not."""
        self.look_at = 0.0

    @staticmethod
    def request(keys: list[str]) -> list[list[Any]]:
        """Return the commands that have Redis tell when one of the lists changes, and say whether one has."""
        return [
            ["CLIENT", "TRACKING", "ON", "OPTIN", "NOLOOP"],
            ["CLIENT", "CACHING", "YES"],
            ["EXISTS", *keys],
        ]

    def read_reply(self, connection: Any, look_every_s: float) -> None:
        """Read what Redis said to these commands; where it cannot tell news, look every so often."""
        replies = [_reply_or_error(connection) for _ in range(3)]
        for error in replies:
            if isinstance(error, Exception):
                logger.warning("Redis tells no news (%s): looking every %s s", error, look_every_s)
                break
        # Changed already, or news are in redis-py's buffer, where the event loop does not see them.
        changed = isinstance(replies[2], int) and replies[2] > 0
        self.look_at = 0.0 if changed or connection.can_read(timeout=0) else monotonic() + look_every_s

    def read(self, connection: Any) -> None:
        """Read the notice that a list has changed."""
        connection.read_response(push_request=True)
        self.look_now()


def _reply_or_error(connection: Any) -> Any:
    try:
        return connection.read_response()
    except ResponseError as exc:
        return exc
