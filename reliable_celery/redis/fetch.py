"""The Redis script that acknowledges, pops and registers messages in one step."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field

from reliable_celery.redis.leases import RENEW
from reliable_celery.redis.rota import ROTA, Turn

#: Acknowledges, renews the consumer's lease, then moves up to ARGV[2] messages into `unacked`, in one step.
#: KEYS: unacked, its index, the leases, then the lists in reading order.
#: ARGV: prefix of new tags, how many, the lease (empty: no lease) and its life (s), the most bytes of a
#: message, number of acks, the acks, per list the end of its values in `unacked` (empty: needs no
#: acknowledgement), the consumer's turn.
#: Messages are registered with Redis' own time, so that the workers' clocks do not matter.
#: The first command frees memory: a full Redis refuses every script that begins by using memory, but runs
#: this one, which moves messages and so makes room. A message leaves its list only once it is registered, so
#: an error in between leaves it where it was. Of a message with more bytes only the beginning is handed out,
#: and no more messages are taken once their bytes together reach as many.
#: Returns the messages, and how to wait for more.
FETCH = f"""
local room, most, acks = tonumber(ARGV[2]), tonumber(ARGV[5]), tonumber(ARGV[6])
redis.call('HDEL', KEYS[1], '', unpack(ARGV, 7, 6 + acks))
if acks > 0 then redis.call('ZREM', KEYS[2], unpack(ARGV, 7, 6 + acks)) end
local found, bytes, now = {{}}, 0, redis.call('TIME')[1]
if ARGV[3] ~= '' then{RENEW.format(leases="KEYS[3]", me="ARGV[3]", life="ARGV[4]")}end
for k = 4, #KEYS do
    local ending, taken = ARGV[3 + acks + k], 0
    local wanted = ending == '' and 1 or room
    while #found < room and taken < wanted and bytes < most do
        local item = redis.call('LINDEX', KEYS[k], -1 - taken)
        if not item then break end
        local tag = ARGV[1] .. (#found + 1)
        if ending ~= '' then
            while redis.call('HSETNX', KEYS[1], tag, '[' .. item .. ending) == 0 do tag = tag .. '+' end
            redis.call('ZADD', KEYS[2], now, tag)
            if #item > most then item = string.sub(item, 1, most + 1) end
        end
        taken, bytes = taken + 1, bytes + #item
        found[#found + 1] = {{k - 4, tag, item}}
    end
    if taken > 0 then redis.call('LTRIM', KEYS[k], 0, -1 - taken) end
end
if bytes >= most then room = #found end
{ROTA}
return {{found, wait, sleepers}}
"""
FETCH_SHA = hashlib.sha1(FETCH.encode(), usedforsecurity=False).hexdigest()


@dataclass(frozen=True)
class Trip:
    """One run of FETCH: its request, and what to repair when its reply never comes."""

    lists: list[tuple[str, str]]  # (list key, queue)
    room: int
    acks: list[str]
    no_ack: frozenset[str]  # queues
    prefix: str
    lease: str  # empty: no lease
    lease_s: float
    most_bytes: int
    turn: Turn = field(default_factory=Turn)

    def arguments(self, unacked_key: str, unacked_index_key: str, leases_key: str) -> list[str | int | float]:
        """Return the arguments after the script in EVAL and EVALSHA."""
        keys = [unacked_key, unacked_index_key, leases_key, *(key for key, _ in self.lists)]
        endings = ["" if queue in self.no_ack else ending_of(queue) for _, queue in self.lists]
        settings = self.prefix, self.room, self.lease, self.lease_s, self.most_bytes, len(self.acks)
        return [len(keys), *keys, *settings, *self.acks, *endings, *self.turn.arguments()]

    def tags(self) -> Iterator[str]:
        """Return the tags that it may have assigned."""
        return (f"{self.prefix}{number}" for number in range(1, self.room + 1))


def ending_of(queue: str) -> str:
    """Return the end of an entry for a message from `queue`; an entry is `[`, the message, this end."""
    return f',"",{json.dumps(queue)}]'
