"""Messages with a future ETA wait in Redis, where they are already registered; no worker holds them.

They take neither memory nor prefetch places of a worker, whatever their number, size and ETA; they survive
its death; and Redis' clock alone decides when they are due. (docs/adr/030)
"""

# mypy: disable-error-code="no-untyped-call"
# kombu is untyped in parts.

from __future__ import annotations

import logging
from time import monotonic
from typing import Any

from kombu.transport import redis as stock
from kombu.transport import virtual

logger = logging.getLogger(__name__)

MAX_DUE = 50  # messages requeued in one step; each is copied inside Redis
LOOK_AHEAD_S = 1.0  # seconds; the sweep runs as often, so only messages that are due sooner need a timer
NO_LIST_S = 10.0  # seconds until a message is tried again whose queue is something else in Redis
SHORTEST_LOOK_S = 0.02  # seconds between two looks for due messages

#: Makes a message wait. KEYS: unacked's index, the waiting messages. ARGV: its tag, its list, its due time
#: (Unix time). Returns the seconds until then as text, empty when it is due. A message that is no longer
#: registered was given to another consumer, which puts it off itself.
PUT_OFF = """
local time = redis.call('TIME')
local wait = ARGV[3] - (time[1] + time[2] / 1000000)
if wait <= 0 then return '' end
if redis.call('ZREM', KEYS[1], ARGV[1]) == 1 then
    redis.call('ZADD', KEYS[2], ARGV[3], ARGV[1] .. ' ' .. ARGV[2])
end
return tostring(wait)
"""

#: Requeues due messages unchanged. KEYS: unacked, the waiting messages. ARGV: how many at most; for how many
#: seconds to put off a message whose list is something else. Returns the seconds until the next is due as
#: text, empty when none waits. Its first command frees memory, so a full Redis runs it.
GIVE_BACK_DUE = """
redis.call('ZREM', KEYS[2], '')
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
for _, entry in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now, 'LIMIT', 0, ARGV[1])) do
    local tag, list = string.match(entry, '^(%S+) (.*)$')
    local value = redis.call('HGET', KEYS[1], tag)
    local pushed = value and redis.pcall('RPUSH', list, string.match(value, '^%[(.*),"",".-"%]$'))
    if type(pushed) == 'table' then
        redis.call('ZADD', KEYS[2], now + ARGV[2], entry)
    else
        redis.call('HDEL', KEYS[1], tag)
        redis.call('ZREM', KEYS[2], entry)
    end
end
local first = redis.call('ZRANGE', KEYS[2], 0, 0, 'WITHSCORES')
return first[2] and tostring(first[2] - now) or ''
"""


class LaterChannel(stock.Channel):
    """A channel that leaves messages with a future ETA in Redis, and requeues them when they are due."""

    _look_for_due_at = 0.0  # monotonic seconds; when the last timer fires

    @property
    def later_key(self) -> str:
        """Return the name of the sorted set of waiting messages; a member is a tag and the message's list."""
        return f"{self.unacked_key}_later"

    def put_off(self, message: Any, due: float) -> bool:
        """Let a message wait until `due`, a Unix time; False when that has passed by Redis' clock."""
        priority = self._get_message_priority({"properties": message.properties}, reverse=False)
        list_key = self._q_for_pri(message.delivery_info["queue"], priority)
        with self.conn_or_acquire() as client:
            wait = client.eval(
                PUT_OFF, 2, self.unacked_index_key, self.later_key, message.delivery_tag, list_key, due
            )
        if not wait:
            return False
        virtual.QoS.ack(self.qos, message.delivery_tag)  # frees its place in the prefetch
        self._look_for_due_in(float(wait))
        return True

    def give_back_due(self) -> None:
        """Requeue due messages, and set a timer for the next one."""
        with self.conn_or_acquire() as client:
            keys = self.unacked_key, self.later_key
            wait = client.eval(GIVE_BACK_DUE, len(keys), *keys, MAX_DUE, NO_LIST_S)
        if wait:
            self._look_for_due_in(float(wait))

    def _look_for_due_in(self, seconds: float) -> None:
        """Set a timer for a message that is due before the next sweep, unless one fires earlier."""
        loop, now = self.connection.cycle.loop, monotonic()
        at = now + max(seconds, SHORTEST_LOOK_S)
        if loop is None or seconds >= LOOK_AHEAD_S or now < self._look_for_due_at <= at:
            return
        self._look_for_due_at = at
        loop.call_later(at - now, self._timer_went_off)

    def _timer_went_off(self) -> None:
        self._look_for_due_at = 0.0
        if self.closed or self.connection is None:
            return
        try:
            self.give_back_due()
        except (*self.connection_errors, self.ResponseError):
            logger.warning("Could not look for messages that are due; the next sweep will", exc_info=True)
