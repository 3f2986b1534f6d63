"""Take over messages that workers of an earlier release left under kombu's own keys.

Such a worker registered them in `unacked`, which all Celery apps on that database share. They are taken over
once no worker can hold them any more: only messages of queues that this consumer reads, and only with tags
that our transport makes, so that no other app's message is touched. (docs/adr/032)
"""

# mypy: disable-error-code="no-untyped-call, attr-defined"
# kombu is untyped in parts.

from __future__ import annotations

import logging
from time import monotonic

from kombu.transport import redis as stock
from kombu.utils.json import dumps

from reliable_celery.redis.fetch import ending_of

logger = logging.getLogger(__name__)

SHARED_KEY, SHARED_INDEX_KEY = stock.Channel.unacked_key, stock.Channel.unacked_index_key
SHARED_LEASES_KEY = f"{SHARED_KEY}_leases"
OUR_TAGS = "*.*.*"  # stock tags are UUIDs, which have no dots
AT_ONCE = 100  # tags per step
LOOK_EVERY_S = 10.0  # seconds

#: Moves entries that no worker holds to our own keys, as overdue. KEYS: the shared unacked, its index, its
#: leases, our unacked, its index. ARGV: the visibility timeout (s), number of tags, the tags, the endings of
#: our entries. A lease decides alone; without one, the visibility timeout does.
ADOPT = """
local now, adopted = tonumber(redis.call('TIME')[1]), 0
redis.call('HDEL', KEYS[4], '')
for i = 3, 2 + ARGV[2] do
    local tag = ARGV[i]
    local since = redis.call('ZSCORE', KEYS[2], tag)
    local lease = redis.call('ZSCORE', KEYS[3], string.match(tag, '^[^.]*[.]'))
    local ends = lease or (since and since + ARGV[1])
    local value = since and tonumber(ends) <= now and redis.call('HGET', KEYS[1], tag)
    for e = 3 + ARGV[2], #ARGV do
        if value and string.sub(value, -#ARGV[e]) == ARGV[e] then
            redis.call('HSET', KEYS[4], tag, value)
            redis.call('ZADD', KEYS[5], 0, tag)
            redis.call('HDEL', KEYS[1], tag)
            redis.call('ZREM', KEYS[2], tag)
            adopted = adopted + 1
            break
        end
    end
end
return adopted
"""


class AdoptingChannel(stock.Channel):
    """A channel that takes over messages of its queues from earlier releases."""

    _adopt_at = 0.0  # monotonic seconds

    def adopt(self, queues: list[str]) -> None:
        """Take over messages of `queues` that no worker of an earlier release can hold any more.

        Does nothing most of the time, and never anything if our keys are kombu's own.
        """
        if self.unacked_key == SHARED_KEY or not queues or monotonic() < self._adopt_at:
            return
        self._adopt_at = monotonic() + LOOK_EVERY_S
        try:
            adopted = self._adopt_all(queues)
        except self.ResponseError as error:
            logger.warning("Cannot take over messages of earlier releases in %s: %s", SHARED_KEY, error)
            return
        if adopted:
            logger.warning("Took over %d messages that an earlier release left unacknowledged", adopted)

    def _adopt_all(self, queues: list[str]) -> int:
        with self.conn_or_acquire() as client:
            found = [tag for tag, _ in client.zscan_iter(SHARED_INDEX_KEY, OUR_TAGS, count=1000)]
        return sum(self._adopt(found[i : i + AT_ONCE], queues) for i in range(0, len(found), AT_ONCE))

    def _adopt(self, tags: list[bytes], queues: list[str]) -> int:
        endings = [form for queue in queues for form in (ending_of(queue), f', "", {dumps(queue)}]')]
        keys = SHARED_KEY, SHARED_INDEX_KEY, SHARED_LEASES_KEY, self.unacked_key, self.unacked_index_key
        with self.conn_or_acquire() as client:
            adopted: int = client.eval(
                ADOPT, len(keys), *keys, self.visibility_timeout, len(tags), *tags, *endings
            )
        return adopted
