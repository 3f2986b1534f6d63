"""What lets a worker start and work on a Redis that is full, so that something makes room.

At `maxmemory` with `noeviction` Redis refuses commands that may use memory, every command of a transaction
(reads and deletions as well), and scripts that begin by using some. It lets commands through that only free
memory, and scripts that begin with one of those. So no transactions here, and scripts begin by freeing.
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

#: Binds a queue. KEYS: the exchange's table, its queues that never expire. ARGV: the binding.
BIND = f"{FREE_FIRST}redis.call('SADD', KEYS[1], ARGV[1]) redis.call('SADD', KEYS[2], ARGV[1])"


class Client(redis.Redis):
    """A client whose pipelines are no transactions; nothing that kombu does in one relies on it."""

    def pipeline(self, transaction: bool = False, shard_hint: Any = None) -> Any:
        """Return a pipeline, a transaction only where one is asked for."""
        return super().pipeline(transaction, shard_hint)


class FrugalChannel(stock.Channel):
    """A channel that binds queues also where Redis takes nothing else.

    Celery binds some for remote control, for events and for the replies of other workers before it reads a
    message. They take a few hundred bytes a worker; the messages that it then handles give back more.
    """

    def _get_client(self) -> Any:
        super()._get_client()  # refuses a redis-py that is too old
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
