"""A consumer's lease on its messages, so that those of a killed consumer are requeued within seconds.

The visibility timeout must be longer than the longest task; a lease only longer than a pause of the event
loop. It is a member of a sorted set: the prefix of the consumer's tags, and its expiry. (docs/adr/032)
"""

# mypy: disable-error-code="no-untyped-call, assignment, misc"
# kombu is untyped in parts.

from __future__ import annotations

import logging
from collections.abc import Iterable
from time import monotonic
from typing import Any
from uuid import uuid4

from kombu.transport import redis as stock

logger = logging.getLogger(__name__)

MAX_ORPHANS = 50  # messages requeued in one step; the worker's own messages wait for it

#: Renews a consumer's lease at `now`. Parts: the key of the leases, the consumer, the lease's life (s). If it
#: finds its own lease expired, Redis may have stood still: then no other one counts as expired until all have
#: had the time to renew theirs.
RENEW = """
    local own = redis.call('ZSCORE', {leases}, {me})
    if own and tonumber(own) < tonumber(now) then redis.call('ZADD', {leases}, now + {life} / 2, 'grace') end
    redis.call('ZADD', {leases}, now + {life}, {me})
"""

#: Renews a lease, registers tags anew, and returns messages whose consumer's lease has expired; deletes
#: expired leases without messages.
#: KEYS: the leases, the index of `unacked`. ARGV: own prefix (empty: no lease), its life (s), how many
#: messages to return, the tags. It uses Redis' clock, so that the workers' clocks do not matter, and whole
#: seconds: a lease expires once its last one is over. The first command frees memory: a full Redis refuses
#: every script that begins by using memory.
TEND = f"""
redis.call('ZREM', KEYS[1], '')
local now = tonumber(redis.call('TIME')[1])
for i = 4, #ARGV do redis.call('ZADD', KEYS[2], 'XX', now, ARGV[i]) end
if ARGV[1] ~= '' then{RENEW.format(leases="KEYS[1]", me="ARGV[1]", life="ARGV[2]")}end
local grace = redis.call('ZSCORE', KEYS[1], 'grace')
if grace and tonumber(grace) >= now then return {{}} end
local expired = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', '(' .. now)
if #expired == 0 then return {{}} end
local held, orphans = {{}}, {{}}
for _, prefix in ipairs(expired) do held[prefix] = false end
for _, tag in ipairs(redis.call('ZRANGE', KEYS[2], 0, -1)) do
    local prefix = string.match(tag, '^[^.]*[.]')
    if held[prefix] ~= nil then
        held[prefix] = true
        if #orphans < tonumber(ARGV[3]) then orphans[#orphans + 1] = tag end
    end
end
for prefix, holds in pairs(held) do
    if not holds then redis.call('ZREM', KEYS[1], prefix) end
end
return orphans
"""

#: Returns messages not acknowledged in time, except those of consumers with a valid lease.
#: KEYS: the leases, the index of `unacked`. ARGV: the visibility timeout (s), how many (-1: all).
OVERDUE = """
local now, overdue = tonumber(redis.call('TIME')[1]), {}
local grace = redis.call('ZSCORE', KEYS[1], 'grace')
local last = grace and tonumber(grace) >= now and 0 or now
for _, tag in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', '(' .. (now - ARGV[1]))) do
    if #overdue == tonumber(ARGV[2]) then break end
    local lease = redis.call('ZSCORE', KEYS[1], string.match(tag, '^[^.]*[.]') or '')
    if not lease or tonumber(lease) < last then overdue[#overdue + 1] = tag end
end
return overdue
"""

#: Registers a message anew, without an owner. KEYS: unacked, its index. ARGV: its tag.
DISOWN = """
redis.call('ZREM', KEYS[2], ARGV[1])
local value = redis.call('HGET', KEYS[1], ARGV[1])
if value then
    local tag = string.match(ARGV[1], '^nobody[.].*') or 'nobody.' .. ARGV[1]
    redis.call('HDEL', KEYS[1], ARGV[1])
    redis.call('HSET', KEYS[1], tag, value)
    redis.call('ZADD', KEYS[2], redis.call('TIME')[1], tag)
end
"""


class LeasingChannel(stock.Channel):
    """A channel whose event loop renews its lease, and requeues messages of consumers with expired leases."""

    #: Seconds; a consumer that is silent for so long is considered dead. It renews five times as often.
    lease_s: float = 10
    from_transport_options = (*stock.Channel.from_transport_options, "lease_s")

    _tend_leases_at = 0.0  # monotonic seconds

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.tag_prefix = f"{uuid4().hex}."
        super().__init__(*args, **kwargs)

    @property
    def leases_key(self) -> str:
        """Return the name of the sorted set of all leases."""
        return f"{self.unacked_key}_leases"

    @property
    def own_lease(self) -> str:
        """Return this consumer's member of that set; empty when it holds no lease."""
        return self.tag_prefix if self.connection.holds_leases else ""

    def tend_leases(self) -> None:
        """Renew our lease, or register our messages anew without one; requeue messages of killed workers.

        Does nothing most of the time.
        """
        if monotonic() < self._tend_leases_at:
            return
        self._tend_leases_at = monotonic() + self.lease_s / 5
        try:
            orphans = self._give_back_orphans()
        except (*self.connection_errors, self.ResponseError):
            logger.warning("The leases could not be renewed; trying again soon", exc_info=True)
            return
        if orphans:
            logger.warning("Requeued %d messages of a worker that was silent for too long", orphans)
        if orphans == MAX_ORPHANS:
            self._tend_leases_at = 0.0

    def lease_was_renewed(self) -> None:
        """Leave it to trips for messages to renew the lease, and to others to look for expired ones.

        If no more trips follow, this consumer does so itself in time.
        """
        self._tend_leases_at = monotonic() + self.lease_s / 2

    def _give_back_orphans(self) -> int:
        held = [] if self.own_lease else self.held_tags()
        with self.conn_or_acquire() as client:
            orphans = self._tend(client, self.own_lease, MAX_ORPHANS, held)
            self.give_back(orphans, client)
        return len(orphans)

    def _tend(self, client: Any, lease: str, limit: int, tags: list[str]) -> list[bytes]:
        orphans: list[bytes] = client.eval(
            TEND, 2, self.leases_key, self.unacked_index_key, lease, self.lease_s, limit, *tags
        )
        return orphans

    def held_tags(self) -> list[str]:
        """Return the tags of all unsettled messages of this channel."""
        return [tag for tag in list(self.qos._delivered) if tag not in self.qos._dirty]

    def give_back(self, tags: Iterable[str | bytes], client: Any) -> None:
        """Requeue messages; one that Redis refuses to push is left to the visibility timeout."""
        for tag in tags:
            try:
                self.qos.restore_by_tag(tag, client)
            except self.ResponseError:
                logger.exception("Redis refused to requeue the message registered as %r", tag)
                self.disown(tag)

    def disown(self, tag: str | bytes) -> None:
        """Have a message redelivered after the visibility timeout, whatever our lease says."""
        with self.conn_or_acquire() as client:
            client.eval(DISOWN, 2, self.unacked_key, self.unacked_index_key, tag)

    def overdue(self, client: Any, limit: int) -> list[bytes]:
        """Return the tags of messages not acknowledged within the visibility timeout."""
        keys = self.leases_key, self.unacked_index_key
        tags: list[bytes] = client.eval(OVERDUE, 2, *keys, self.visibility_timeout, limit)
        return tags

    def give_up_lease(self) -> None:
        """Leave running tasks to the visibility timeout from now on: it is longer than any task."""
        self._tend_leases_at = 0.0
        with self.conn_or_acquire() as client:
            self._tend(client, "", 0, self.held_tags())
            client.zrem(self.leases_key, self.tag_prefix)
