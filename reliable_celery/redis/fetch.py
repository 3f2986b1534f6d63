"""The one script with which a consumer acknowledges, pops and registers messages on Redis."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass

#: Acknowledges, takes the consumer's lease, then moves up to ARGV[2] messages into `unacked`, in one step.
#: KEYS: unacked, its index, the leases, then the lists in reading order.
#: ARGV: prefix of new tags, how many, the lease (empty: none is taken) and its life (s), number of acks, the
#: acks, per list the end of its values in `unacked` (empty: no acknowledgement is wanted). The time that a
#: message is registered with is Redis' own, so that the clocks of the workers do not matter.
#: The first command frees memory: a Redis that is full refuses every script that begins by using some, and
#: lets this one through, which moves messages and so makes room. A message leaves its list only once it is
#: registered, so that an error in between leaves it where it was.
FETCH = """
local room, acks = tonumber(ARGV[2]), tonumber(ARGV[5])
redis.call('HDEL', KEYS[1], '', unpack(ARGV, 6, 5 + acks))
if acks > 0 then redis.call('ZREM', KEYS[2], unpack(ARGV, 6, 5 + acks)) end
local found, now = {}, redis.call('TIME')[1]
if ARGV[3] ~= '' then redis.call('ZADD', KEYS[3], now + ARGV[4], ARGV[3]) end
for k = 4, #KEYS do
    if #found >= room then break end
    local ending = ARGV[2 + acks + k]
    local wanted = ending == '' and 1 or room - #found
    local items = redis.call('LRANGE', KEYS[k], -wanted, -1)
    for i = #items, 1, -1 do
        local tag = ARGV[1] .. (#found + 1)
        if ending ~= '' then
            while redis.call('HSETNX', KEYS[1], tag, '[' .. items[i] .. ending) == 0 do tag = tag .. '+' end
            redis.call('ZADD', KEYS[2], now, tag)
        end
        found[#found + 1] = {k - 4, tag, items[i]}
    end
    if #items > 0 then redis.call('RPOP', KEYS[k], #items) end
end
return found
"""
FETCH_SHA = hashlib.sha1(FETCH.encode(), usedforsecurity=False).hexdigest()


@dataclass(frozen=True)
class Trip:
    """One run of FETCH: what it asks for, and what must be put right when its reply never comes."""

    lists: list[tuple[str, str]]  # (list key, queue)
    room: int
    acks: list[str]
    no_ack: frozenset[str]  # queues
    prefix: str
    lease: str  # empty: none is taken
    lease_s: float

    def arguments(self, unacked_key: str, unacked_index_key: str, leases_key: str) -> list[str | int | float]:
        """What follows the script in EVAL and EVALSHA."""
        keys = [unacked_key, unacked_index_key, leases_key, *(key for key, _ in self.lists)]
        endings = ["" if queue in self.no_ack else ending_of(queue) for _, queue in self.lists]
        settings = self.prefix, self.room, self.lease, self.lease_s, len(self.acks)
        return [len(keys), *keys, *settings, *self.acks, *endings]

    def tags(self) -> Iterator[str]:
        """The tags it may have given."""
        return (f"{self.prefix}{number}" for number in range(1, self.room + 1))


def ending_of(queue: str) -> str:
    """Return how the entry of a message from `queue` ends: after `[` and the message come these."""
    return f',"",{json.dumps(queue)}]'
