"""The outbox of events for other apps: written with the command, gone once the broker has them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sqlalchemy import Engine, text

from messaging.announcements import Announcement

#: `position` and `at` are drawn here, while the event's aggregate is locked: both rise within one aggregate.
INSERT_ANNOUNCEMENT = """
INSERT INTO announcements (event_id, event_type, payload, correlation_id, causation_id, subject, at)
VALUES (%s, %s, %s, %s, %s, %s, clock_timestamp())"""

#: Any constant will do; whoever holds it publishes, so that nobody overtakes.
LOCK = 4_177_011

#: An array makes a plan by the primary key, however many rows wait. The positions that commands have drawn
#: and not committed yet are not among them, so a range would delete what nobody has published.
TAKE = text("""
WITH taken AS (
    DELETE FROM announcements WHERE position = ANY(ARRAY(
        SELECT position FROM announcements ORDER BY position LIMIT :limit))
    RETURNING *
)
SELECT event_id::text, event_type, payload, correlation_id, causation_id, at, position, subject
FROM taken ORDER BY position
""")


@dataclass(frozen=True)
class Announcements:
    """Events that other apps have not been told yet."""

    engine: Engine

    @contextmanager
    def take(self, limit: int) -> Iterator[list[Announcement]]:
        """Take the oldest events to publish; they are gone when the block ends well.

        Gives none while another process is at it. A failure brings them back: they are published at least
        once. So it is with a process that freezes: the server ends its session, and another goes on.
        """
        with self.engine.begin() as connection:
            alone = connection.execute(text("SELECT pg_try_advisory_xact_lock(:lock)"), {"lock": LOCK})
            rows = connection.execute(TAKE, {"limit": limit}).all() if alone.scalar_one() else []
            yield [Announcement(*row) for row in rows]

    def count(self) -> int:
        """Return how many events wait."""
        with self.engine.begin() as connection:
            waiting: int = connection.execute(text("SELECT count(*) FROM announcements")).scalar_one()
        return waiting
