"""The record of what operators did; it outlives the deliveries."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Engine, text

NOTE = text("""
INSERT INTO audit (actor, action, subject, reason, count, outcome)
VALUES (:actor, :action, :subject, :reason, :count, :outcome)
""")


@dataclass(frozen=True)
class Entry:
    """One action: who did what to what, why, how often and with what outcome."""

    actor: str
    action: str
    subject: str  # the filter, the id or the name that was given
    reason: str | None = None
    count: int | None = None
    outcome: str | None = None

    @property
    def facts(self) -> dict[str, Any]:
        """Return the values of its row."""
        return dict(vars(self))


BEGIN = text("""
INSERT INTO audit (actor, action, subject, reason, count, outcome)
VALUES (:actor, :action, :subject, :reason, :count, :outcome) RETURNING id
""")

GO_ON = text("UPDATE audit SET count = :count, outcome = :outcome WHERE id = :id")

#: For an action that is counted as it goes on.
COUNT = text("UPDATE audit SET count = count + :count WHERE id = :id")
END = text("UPDATE audit SET outcome = 'done' WHERE id = :id")

#: With `of_many` without those whose filter is the id of one delivery.
LIST = text("""
SELECT id, at, actor, action, subject, reason, count, outcome FROM audit
WHERE (CAST(:actor AS text) IS NULL OR actor = :actor) AND (CAST(:action AS text) IS NULL OR action = :action)
  AND (CAST(:since AS timestamptz) IS NULL OR at >= :since) AND id < coalesce(:before, 9223372036854775807)
  AND NOT (:of_many AND subject ~ '^ids=[^,]*$')
ORDER BY id DESC LIMIT :limit
""")

#: The outcome of an action until it ends. If it stays, the action was interrupted, after as many as it says.
UNDER_WAY = "under way"


@dataclass(frozen=True)
class Listed:
    """One entry, as it is listed."""

    id: int
    at: datetime
    actor: str
    action: str
    subject: str
    reason: str | None
    count: int | None
    outcome: str | None


@dataclass(frozen=True)
class Audit:
    """The entries of one database."""

    engine: Engine

    def begin(self, entry: Entry) -> int:
        """Write the entry of an action that goes on; return its id."""
        with self.engine.begin() as connection:
            number: int = connection.execute(BEGIN, entry.facts).scalar_one()
        return number

    def end(self, entry_id: int) -> None:
        """Say that an action is done."""
        with self.engine.begin() as connection:
            connection.execute(END, {"id": entry_id})

    def find(
        self,
        limit: int,
        *,
        actor: str | None = None,
        action: str | None = None,
        since: datetime | None = None,
        before: int | None = None,
        of_many: bool = False,
    ) -> list[Listed]:
        """Return the newest entries; `before` an entry's id, for the next page.

        `of_many`: without those of one delivery.
        """
        facts = {
            "limit": limit,
            "actor": actor,
            "action": action,
            "since": since,
            "before": before,
            "of_many": of_many,
        }
        with self.engine.connect() as connection:
            return [Listed(*row) for row in connection.execute(LIST, facts)]
