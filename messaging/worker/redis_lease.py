"""A consumer's lease on the messages that it holds, so that those of a killed one go back within seconds.

The visibility timeout must be longer than the longest task; a lease only longer than a pause of the loop.
It is a member of a sorted set: the prefix of the consumer's tags, and when it runs out. (docs/adr/032)
"""

# mypy: disable-error-code="no-untyped-call, assignment, misc"
# kombu is untyped in parts.

from __future__ import annotations

import logging
from time import monotonic
from typing import Any
from uuid import uuid4

from kombu.transport import redis as stock

logger = logging.getLogger(__name__)

MAX_ORPHANS = 50  # messages given back in one go; a worker's own messages wait for it

#: Prolongs a lease, registers tags anew, and names messages whose consumer's lease has run out; of a consumer
#: that holds nothing any more the lease goes.
#: KEYS: the leases, the index of `unacked`. ARGV: own prefix (empty: no lease), its life (s), how many
#: messages to name, the tags. The clock is Redis' own, so that those of the workers do not matter.
TEND = """
local now = tonumber(redis.call('TIME')[1])
for i = 4, #ARGV do redis.call('ZADD', KEYS[2], 'XX', now, ARGV[i]) end
if ARGV[1] ~= '' then redis.call('ZADD', KEYS[1], now + ARGV[2], ARGV[1]) end
local expired = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', now)
if #expired == 0 then return {} end
local held, orphans = {}, {}
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


class LeasingChannel(stock.Channel):
    """A channel whose event loop gives signs of life, and gives back what others held who give none."""

    #: Seconds; a consumer that is silent for so long is taken for dead. It speaks five times as often.
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

    def tend_leases(self) -> None:
        """Prolong our lease and the stay of what waits here for its time; give back what killed workers held.

        Does nothing most of the time.
        """
        if monotonic() < self._tend_leases_at:
            return
        self._tend_leases_at = monotonic() + self.lease_s / 5
        try:
            orphans = self._give_back_orphans()
        except (*self.connection_errors, self.ResponseError):
            logger.warning("The leases could not be tended; trying again soon", exc_info=True)
            return
        if orphans:
            logger.warning("Gave back %d messages of a worker that was silent for too long", orphans)
        if orphans == MAX_ORPHANS:
            self._tend_leases_at = 0.0

    def _give_back_orphans(self) -> int:
        own = self.tag_prefix if self.connection.holds_leases else ""
        with self.conn_or_acquire() as client:
            orphans = client.eval(
                TEND,
                2,
                *(self.leases_key, self.unacked_index_key),
                *(own, self.lease_s, MAX_ORPHANS, *self._tags_for_later()),
            )
            for tag in orphans:
                self.qos.restore_by_tag(tag, client)
        return len(orphans)

    def _tags_for_later(self) -> list[str]:
        """Return the tags of messages that wait here for their time, which may take any length."""
        return [tag for tag, message in self.qos._delivered.items() if message.headers.get("eta")]

    def give_up_lease(self) -> None:
        """Leave what is still running to the visibility timeout, which is longer than any task."""
        with self.conn_or_acquire() as client:
            client.zrem(self.leases_key, self.tag_prefix)
