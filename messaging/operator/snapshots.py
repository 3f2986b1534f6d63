"""Who keeps dead rows from being removed: sessions with an old snapshot, prepared transactions, unused slots.

Every read of a table that changes has to step over its dead rows, so all that they hold up becomes slower.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Engine, text

HOLDERS = text("""
SELECT format('session %s of %s%s from %s, %s', pid, coalesce(usename, '?'),
              CASE WHEN application_name <> '' THEN format(' (%s)', application_name) END,
              coalesce(host(client_addr), 'a local socket'), coalesce(state, '?')),
       extract(epoch FROM clock_timestamp() - xact_start)::float
FROM pg_stat_activity
WHERE (backend_xmin IS NOT NULL OR backend_xid IS NOT NULL) AND backend_type = 'client backend'
  AND datname = current_database() AND clock_timestamp() - xact_start > make_interval(secs => :longer_s)
UNION ALL
SELECT format('prepared transaction %s of %s', gid, owner),
       extract(epoch FROM clock_timestamp() - prepared)::float
FROM pg_prepared_xacts
WHERE database = current_database() AND clock_timestamp() - prepared > make_interval(secs => :longer_s)
UNION ALL
SELECT format('replication slot %s, which nobody reads', slot_name), NULL
FROM pg_replication_slots WHERE xmin IS NOT NULL AND NOT active
ORDER BY 2 DESC NULLS FIRST
""")


@dataclass(frozen=True)
class Holder:
    """Something for which PostgreSQL keeps dead rows."""

    name: str
    seconds: float | None  # since it began; None if that is not known

    def __str__(self) -> str:
        """Name it as an operator finds it again."""
        since = "" if self.seconds is None else f", for {self.seconds:.0f} s"
        return f"{self.name}{since}"


def holders(engine: Engine, longer_s: float) -> list[Holder]:
    """Return what has kept dead rows for longer than this, the oldest first."""
    with engine.connect() as connection:
        return [Holder(*row) for row in connection.execute(HOLDERS, {"longer_s": longer_s})]
