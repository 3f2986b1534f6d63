"""Return a message to its list in one step, even on a full Redis."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from kombu.utils.json import loads

from reliable_celery.redis.envelope import hide

#: Moves a message from `unacked` to lists. KEYS: unacked, its index, the lists. ARGV: the tag, then per list
#: a command and the message to push. The first command frees memory: a full Redis refuses transactions and
#: scripts that begin by using memory. A message stays registered until it is pushed, so an error in between
#: leaves it where sweeps look. A second run finds the message gone and moves nothing.
MOVE = """
redis.call('ZREM', KEYS[2], '')
if redis.call('HEXISTS', KEYS[1], ARGV[1]) == 1 then
    for k = 3, #KEYS do redis.call(ARGV[2 * k - 4], KEYS[k], ARGV[2 * k - 3]) end
    redis.call('HDEL', KEYS[1], ARGV[1])
end
redis.call('ZREM', KEYS[2], ARGV[1])
"""

#: Returns what is registered under a tag. An entry with too many bytes is moved to its queue instead, so that
#: no worker has to read it. KEYS: unacked, its index. ARGV: the tag, the most bytes.
READ = """
redis.call('ZREM', KEYS[2], '')
local value = redis.call('HGET', KEYS[1], ARGV[1])
if not value or #value <= tonumber(ARGV[2]) then return value end
local item, queue = string.match(value, '^%[(.*),"",(".-")%]$')
if not item then return value end
redis.call('RPUSH', cjson.decode('[' .. queue .. ']')[1], item)
redis.call('HDEL', KEYS[1], ARGV[1])
return false
"""


@dataclass
class Pushes:
    """Collects the pushes that kombu would put into a transaction, and moves the message with them."""

    keys: list[str] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)  # commands and messages alternate

    def lpush(self, key: str, message: str) -> None:
        """Push to the end that is read last."""
        self._note("LPUSH", key, message)

    def rpush(self, key: str, message: str) -> None:
        """Push to the end that is read first."""
        self._note("RPUSH", key, message)

    def _note(self, command: str, key: str, message: str) -> None:
        self.keys.append(key)
        self.commands += command, message

    def move(self, client: Any, unacked_key: str, index_key: str, tag: str | bytes) -> None:
        """Move the message that is registered under `tag`."""
        keys = unacked_key, index_key, *self.keys
        client.eval(MOVE, len(keys), *keys, tag, *self.commands)


def read_entry(value: bytes) -> tuple[Any, str, str]:
    """Return the message, exchange and routing key that an entry of `unacked` holds.

    Anything but JSON is hidden in a message; it came from the list of the queue that ends the entry.
    """
    try:
        message, exchange, routing_key = loads(value.decode(errors="replace"))
    except Exception:  # noqa: BLE001  kombu's JSON hooks may raise anything
        return hidden(value)
    return message, exchange, routing_key


def hidden(value: bytes) -> tuple[dict[str, Any], str, str]:
    """Return an entry of `unacked` whose message is an envelope around the original bytes."""
    raw, _, queue = value[1:-1].rpartition(b',"",')
    name = loads(queue)
    return hide(raw, name), "", name
