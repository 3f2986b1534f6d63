"""What slows the database down: overdue work, old snapshots, dead rows, and sessions that block others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sqlalchemy import Engine, text

LAGS = text("""
SELECT
    (SELECT coalesce(extract(epoch FROM now() - min(due_at)), 0)::float
     FROM deliveries WHERE status = 'pending' AND due_at < now()),
    (SELECT count(*) FROM announcements),
    (SELECT coalesce(extract(epoch FROM now() - min(at)), 0)::float FROM announcements),
    (SELECT count(*) FROM pg_stat_activity
     WHERE wait_event_type = 'Lock' AND datname = current_database()
       AND clock_timestamp() - query_start > make_interval(secs => :blocked_s))
""")

#: Seconds that a session may wait for a lock: under load, orders for the same product always wait a little.
BLOCKED_S = 2.0

DEAD_ROWS = text("SELECT relname, n_dead_tup FROM pg_stat_user_tables")

#: Sessions that others wait for, with the number of those and the longest of their waits. Of a prepared
#: transaction only the process id 0 is known.
BLOCKERS = text("""
SELECT blocking.pid, coalesce(blocker.usename, '?'), coalesce(blocker.application_name, ''),
       coalesce(host(blocker.client_addr), 'a local socket'), coalesce(blocker.state, '?'),
       coalesce(extract(epoch FROM clock_timestamp() - blocker.xact_start), 0)::float,
       count(*), max(extract(epoch FROM clock_timestamp() - waiter.query_start))::float
FROM pg_stat_activity waiter
CROSS JOIN LATERAL unnest(pg_blocking_pids(waiter.pid)) AS blocking (pid)
LEFT JOIN pg_stat_activity blocker ON blocker.pid = blocking.pid
WHERE waiter.wait_event_type = 'Lock' AND waiter.datname = current_database()
  AND (blocking.pid = 0 OR blocker.pid IS NOT NULL)
  AND NOT EXISTS (SELECT FROM unnest(pg_blocking_pids(blocker.pid)))
GROUP BY 1, 2, 3, 4, 5, 6
HAVING max(clock_timestamp() - waiter.query_start) > make_interval(secs => :longer_s)
ORDER BY 8 DESC
""")


@dataclass(frozen=True)
class Lags:
    """How far behind the database's work is."""

    relay_s: float  # seconds since the first delivery that the relay has to send was due
    announcements: int  # events not yet published
    announcements_s: float  # seconds since the first of them was raised
    blocked: int  # sessions that have waited for a lock for longer than `BLOCKED_S`


@dataclass(frozen=True)
class Blocker:
    """A session that others wait for, or a prepared transaction."""

    pid: int  # 0: a prepared transaction
    user: str
    application: str
    host: str
    state: str
    transaction_s: float
    waiting: int  # sessions
    longest_wait_s: float

    def __str__(self) -> str:
        """Name it as an operator finds it again."""
        if self.pid == 0:
            return f"a prepared transaction (SELECT * FROM pg_prepared_xacts) blocks {self.waiting}"
        program = f" ({self.application})" if self.application else ""
        return (
            f"session {self.pid} of {self.user}{program} from {self.host}, {self.state},"
            f" {self.transaction_s:.0f} s in its transaction, blocks {self.waiting}"
        )


@dataclass(frozen=True)
class Health:
    """Queries that cost little, however many rows there are."""

    engine: Engine

    def lags(self) -> Lags:
        """Measure how far behind the work is."""
        with self.engine.connect() as connection:
            return Lags(*connection.execute(LAGS, {"blocked_s": BLOCKED_S}).one())

    def dead_rows(self) -> Mapping[str, int]:
        """Return the rows of each table that a vacuum could remove, as PostgreSQL estimates them."""
        with self.engine.connect() as connection:
            return {row.relname: row.n_dead_tup for row in connection.execute(DEAD_ROWS)}

    def blockers(self, longer_s: float) -> list[Blocker]:
        """Return sessions and prepared transactions for whose locks others have waited longer than this."""
        with self.engine.connect() as connection:
            return [Blocker(*row) for row in connection.execute(BLOCKERS, {"longer_s": longer_s})]
