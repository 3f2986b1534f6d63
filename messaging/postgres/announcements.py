"""The outbox of events for other apps: written with the command, deleted once the broker has them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sqlalchemy import Engine, text

from messaging.postgres.commits import WAIT_FOR_STANDBY
from messaging.postgres.low_water import LowWater
from messaging.wire.cloud_events import Announcement

#: `position` and `at` are set here, while the event's aggregate is locked: both rise within one aggregate.
INSERT_ANNOUNCEMENT = """
INSERT INTO announcements (event_id, event_type, payload, correlation_id, causation_id, subject,
                           traceparent, at)
VALUES (%s, %s, %s, %s, %s, %s, %s, clock_timestamp())"""

#: Any constant will do; only the holder publishes, so that events stay in order.
LOCK = 4_177_011

#: With an array the plan uses the primary key, however many rows wait. A range would also delete positions
#: that were not committed when the events were read, and so were never published.
TAKE = text("""
WITH taken AS (
    DELETE FROM announcements WHERE position = ANY(ARRAY(
        SELECT position FROM announcements WHERE position > :low ORDER BY position LIMIT :limit))
    RETURNING *
)
SELECT event_id::text, event_type, payload, correlation_id, causation_id, at, position, subject, traceparent,
       pg_snapshot_xmin(pg_current_snapshot())::text::bigint,
       pg_snapshot_xmax(pg_current_snapshot())::text::bigint
FROM taken ORDER BY position
""")


@dataclass(frozen=True)
class Announcements:
    """Events not yet published to other apps."""

    engine: Engine

    @contextmanager
    def take(self, limit: int, low: LowWater | None = None) -> Iterator[list[Announcement]]:
        """Take the oldest events to publish; they are deleted when the block succeeds.

        A run that takes batch after batch passes the same `low` each time.

        Yields none while another process is publishing. After a failure they stay, so they are published at
        least once. If a process freezes, the server ends its session and another process continues.

        Raises:
            CommitInDoubt: a failover could undo them.
        """
        with self.engine.begin() as connection:
            alone = connection.execute(text("SELECT pg_try_advisory_xact_lock(:lock)"), {"lock": LOCK})
            facts = {"limit": limit, "low": low.mark if low else 0}
            rows = connection.execute(TAKE, facts).all() if alone.scalar_one() else []
            if rows:
                self._wait_for_standby()
            yield [Announcement(*row[:-2]) for row in rows]
        if rows and low is not None:
            last = rows[-1]
            low.taken(last.position, *last[-2:])

    def _wait_for_standby(self) -> None:
        """Wait until a failover cannot undo what is visible: its numbers would be given to other events."""
        with self.engine.begin() as connection:
            connection.execute(text(WAIT_FOR_STANDBY))

    def count(self) -> int:
        """Return how many events wait."""
        with self.engine.begin() as connection:
            waiting: int = connection.execute(text("SELECT count(*) FROM announcements")).scalar_one()
        return waiting
