"""Let a worker start and work on a full Redis, since finished tasks make room.

At `maxmemory` with `noeviction` Redis refuses commands that may use memory, every command of a transaction
(reads and deletions as well), and scripts whose first command may use memory. It runs commands that only free
memory, and scripts that begin with one. So there are no transactions here, and scripts begin by freeing.
"""

# mypy: disable-error-code="no-untyped-call"
# kombu is untyped in parts.

from __future__ import annotations

from functools import cached_property
from typing import Any

import redis
from kombu.transport import redis as stock
from redis.exceptions import OutOfMemoryError

FREE_FIRST = "redis.call('SREM', KEYS[1], '')\n"

#: Binds a queue. KEYS: the exchange's bindings, its queues that never expire. ARGV: the binding.
BIND = f"{FREE_FIRST}redis.call('SADD', KEYS[1], ARGV[1]) redis.call('SADD', KEYS[2], ARGV[1])"


class Client(redis.Redis):
    """A client whose pipelines are not transactions; kombu does not rely on atomic pipelines."""

    def pipeline(self, transaction: bool = False, shard_hint: Any = None) -> Any:
        """Return a pipeline, a transaction only when requested."""
        return super().pipeline(transaction, shard_hint)


class FrugalChannel(stock.Channel):
    """A channel that can bind queues on a full Redis.

    Before it reads a message, Celery binds queues for remote control, events and replies of other workers.
    They take a few hundred bytes per worker; the messages that it then handles free more.
    """

    def _get_client(self) -> Any:
        super()._get_client()  # raises if redis-py is too old
        return Client

    def _queue_bind(self, exchange: str, routing_key: str, pattern: str, queue: str) -> None:
        try:
            super()._queue_bind(exchange, routing_key, pattern, queue)
        except OutOfMemoryError:
            keys = self.keyprefix_queue % exchange, self.keyprefix_binding_permanent % exchange
            binding = self.sep.join([routing_key or "", pattern or "", queue or ""])
            with self.conn_or_acquire() as client:
                client.eval(BIND, 2, *keys, binding)

    @cached_property
    def _refresh_binding(self) -> Any:
        return self._create_client().register_script(FREE_FIRST + stock.REFRESH_BINDING)
