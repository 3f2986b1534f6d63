"""Count in Redis, by task id, how often a message was started and not finished."""

# mypy: disable-error-code="no-untyped-call"
# kombu is untyped in parts.

from __future__ import annotations

from kombu.transport import redis as stock

#: Seconds that a count is kept after the last crash.
KEPT_S = 604_800

#: Increments and returns the count. KEYS: the count. ARGV: how long it is kept (s). A full Redis runs a
#: script whose first command uses no memory.
COUNT = """
redis.call('PERSIST', KEYS[1])
local count = redis.call('INCR', KEYS[1])
redis.call('EXPIRE', KEYS[1], ARGV[1])
return count
"""


class CountingChannel(stock.Channel):
    """A channel that counts crashes for its consumer; see `reliable_celery.poison`."""

    def count_crash(self, task_id: str) -> int:
        """Count another start of a redelivered message; return the count."""
        with self.conn_or_acquire() as client:
            count: int = client.eval(COUNT, 1, self._crashes_key(task_id), KEPT_S)
        return count

    def forget_crashes(self, task_id: str) -> None:
        """Delete the count of a settled message."""
        with self.conn_or_acquire() as client:
            client.delete(self._crashes_key(task_id))

    def _crashes_key(self, task_id: str) -> str:
        return f"{self.unacked_key}_crashes.{task_id}"
