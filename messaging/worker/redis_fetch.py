"""The one script with which a consumer acknowledges, pops and registers messages on Redis."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass

#: Acknowledges, then moves up to ARGV[2] messages into `unacked`, in one atomic step.
#: KEYS: unacked, its index, then the lists in reading order.
#: ARGV: prefix of new tags, how many, number of acks, the acks, per list the end of its values in `unacked`
#: (empty: no acknowledgement is wanted). A message leaves its list once it is registered: when Redis refuses
#: a write (out of memory) the script stops there, and the message is where it was. The time that it is
#: registered with is Redis' own, so that the clocks of the workers do not matter.
FETCH = """
local room, acks = tonumber(ARGV[2]), tonumber(ARGV[3])
if acks > 0 then
    redis.call('HDEL', KEYS[1], unpack(ARGV, 4, 3 + acks))
    redis.call('ZREM', KEYS[2], unpack(ARGV, 4, 3 + acks))
end
local found, now = {}, redis.call('TIME')[1]
for k = 3, #KEYS do
    if #found >= room then break end
    local ending = ARGV[1 + acks + k]
    local wanted = ending == '' and 1 or room - #found
    local items = redis.call('LRANGE', KEYS[k], -wanted, -1)
    for i = #items, 1, -1 do
        local tag = ARGV[1] .. (#found + 1)
        if ending ~= '' then
            while redis.call('HSETNX', KEYS[1], tag, '[' .. items[i] .. ending) == 0 do tag = tag .. '+' end
            redis.call('ZADD', KEYS[2], now, tag)
        end
        found[#found + 1] = {k - 3, tag, items[i]}
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

    def arguments(self, unacked_key: str, unacked_index_key: str) -> list[str | int | float]:
        """What follows the script in EVAL and EVALSHA."""
        keys = [unacked_key, unacked_index_key, *(key for key, _ in self.lists)]
        endings = ["" if queue in self.no_ack else f',"",{json.dumps(queue)}]' for _, queue in self.lists]
        return [len(keys), *keys, self.prefix, self.room, len(self.acks), *self.acks, *endings]

    def tags(self) -> Iterator[str]:
        """The tags it may have given."""
        return (f"{self.prefix}{number}" for number in range(1, self.room + 1))
