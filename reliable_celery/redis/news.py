"""Wait for messages without popping: Redis reports changed keys, by client-side caching.

`EXISTS` on a tracking connection makes Redis push one notice when any of the keys changes. One connection
waits for all queues and priorities, and no worker pops a message that it may not live to register. The keys
are the lists, or the bell of a consumer that sleeps.
"""

from __future__ import annotations

import logging
from time import monotonic
from typing import Any

from redis.exceptions import ResponseError

logger = logging.getLogger(__name__)

TRACKING = ["CLIENT", "TRACKING", "ON", "OPTIN", "NOLOOP"]


class News:
    """What one connection knows about changes to the keys that it waits for."""

    def __init__(self) -> None:
        #: Monotonic seconds. Until then the lists are taken to be empty, unless Redis reports a change.
        self.look_at = 0.0
        self._keys: list[str] = []
        self._bell = False  # the key is a bell, which exists until it is rung
        self._tracking: Any = None  # the socket on which Redis reports changes, or has refused to
        self._refused = False
        self._replies = 0

    def look_now(self) -> None:
        """Look at the lists with the next trip, notified or not."""
        self.look_at = 0.0

    def wait_for(self, keys: list[str], bell: bool = False) -> None:
        """Set what the next requests are about: lists, or a bell."""
        self._keys, self._bell = keys, bell

    def request(self, connection: Any) -> list[list[Any]]:
        """Return the commands that make Redis report changes, and whether something has changed."""
        commands = [["CLIENT", "CACHING", "YES"], ["EXISTS", *self._keys]]
        if connection._sock is not self._tracking:
            self._tracking, self._refused = connection._sock, False
            # Of a notice that comes before a reply; otherwise redis-py drops it.
            connection._parser.set_invalidation_push_handler(lambda _notice: self.look_now())
            commands.insert(0, TRACKING)
        self._replies = len(commands)
        return commands

    def reports_on(self, connection: Any) -> bool:
        """Return whether Redis reports changes on this connection as it is now."""
        return connection._sock is self._tracking

    def read_reply(self, connection: Any, look_every_s: float, unreported_s: float) -> None:
        """Read the replies to these commands; look soon again if Redis cannot report changes."""
        replies = [reply_or_error(connection) for _ in range(self._replies)]
        errors = [reply for reply in replies if isinstance(reply, Exception)]
        if errors and not self._refused:
            self._refused = True
            logger.warning("Redis does not report changes (%s): looking every %s s", errors[0], unreported_s)
        there = replies[-1]
        changed = isinstance(there, int) and bool(there) != self._bell
        self.look_at = 0.0 if changed else monotonic() + (unreported_s if errors else look_every_s)
        self.read_on(connection)

    def read_on(self, connection: Any) -> None:
        """Notice what is in redis-py's buffer already, where the event loop does not see it."""
        if connection.can_read(timeout=0):
            self.look_now()

    def look_again_in(self, seconds: float) -> None:
        """Wait on for what Redis reports already."""
        self.look_at = monotonic() + seconds

    def read(self, connection: Any) -> None:
        """Read the notice that a key has changed."""
        connection.read_response(push_request=True)
        self.look_now()


def reply_or_error(connection: Any) -> Any:
    """Return the next reply, or the error that it is."""
    try:
        return connection.read_response()
    except ResponseError as exc:
        return exc
