"""The record of what operators did; it outlives the deliveries."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import text

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
