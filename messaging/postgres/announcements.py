"""The outbox of events for other apps: written with the command, gone once the broker has them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sqlalchemy import Engine, text

from messaging.announcements import Announcement

#: `position` is drawn while the event's aggregate is locked, so the events of one aggregate stay in order.
INSERT_ANNOUNCEMENT = """
INSERT INTO announcements (event_id, event_type, payload, correlation_id, causation_id)
VALUES (%s, %s, %s, %s, %s)"""

#: Any constant will do; whoever holds it publishes, so that nobody overtakes.
LOCK = 4_177_011

TAKE = text("""
SELECT position, event_id::text, event_type, payload, correlation_id, causation_id, at
FROM announcements ORDER BY position LIMIT :limit
""")


@dataclass(frozen=True)
class AnnouncementStore:
    """Events that other apps have not been told yet."""

    engine: Engine

    @contextmanager
    def take(self, limit: int) -> Iterator[list[Announcement]]:
        """Give the oldest events to publish, and delete them when the block ends well.

        Gives none while another process is at it. A failure keeps them: they are published at least once.
        """
        with self.engine.begin() as connection:
            alone = connection.execute(text("SELECT pg_try_advisory_xact_lock(:lock)"), {"lock": LOCK})
            rows = connection.execute(TAKE, {"limit": limit}).all() if alone.scalar_one() else []
            yield [Announcement(*row[1:]) for row in rows]
            if rows:
                connection.execute(
                    text("DELETE FROM announcements WHERE position = ANY(:positions)"),
                    {"positions": [row.position for row in rows]},
                )

    def count(self) -> int:
        """Return how many events wait."""
        with self.engine.begin() as connection:
            waiting: int = connection.execute(text("SELECT count(*) FROM announcements")).scalar_one()
        return waiting
