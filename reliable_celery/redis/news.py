"""Wait for messages without popping: Redis reports changed lists, by client-side caching.

`EXISTS` on a tracking connection makes Redis push one notice when any of the lists changes. One connection
waits for all queues and priorities, and no worker pops a message that it may not live to register.
"""

from __future__ import annotations

import logging
from time import monotonic
from typing import Any

from redis.exceptions import ResponseError

logger = logging.getLogger(__name__)


class News:
    """What one connection knows about changes to its lists."""

    def __init__(self) -> None:
        #: Monotonic seconds. Until then the lists are taken to be empty, unless Redis reports a change.
        self.look_at = 0.0

    def look_now(self) -> None:
        """Look at the lists with the next trip, notified or not."""
        self.look_at = 0.0

    @staticmethod
    def request(keys: list[str]) -> list[list[Any]]:
        """Return the commands that make Redis report changes to the lists, and whether one has changed."""
        return [
            ["CLIENT", "TRACKING", "ON", "OPTIN", "NOLOOP"],
            ["CLIENT", "CACHING", "YES"],
            ["EXISTS", *keys],
        ]

    def read_reply(self, connection: Any, look_every_s: float) -> None:
        """Read the replies to these commands; if Redis cannot report changes, poll the lists."""
        replies = [_reply_or_error(connection) for _ in range(3)]
        for error in replies:
            if isinstance(error, Exception):
                logger.warning("Redis does not report changes (%s): looking every %s s", error, look_every_s)
                break
        # Already changed, or a notice is in redis-py's buffer, where the event loop does not see it.
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
