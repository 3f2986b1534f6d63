"""Pauses: an operator stops a handler, an event type or everything until it is resumed."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from sqlalchemy import Engine, text

from messaging.postgres.audit import NOTE, Entry
from messaging.postgres.transaction import DATABASE_ERRORS

logger = logging.getLogger(__name__)

#: Seconds for which a process uses the pauses that it has read.
SEEN_S = 1.0

#: For queries of deliveries. A handler is paused under each of its names.
NOT_PAUSED = """
NOT EXISTS (SELECT FROM pauses WHERE scope = 'all' OR (scope = 'handler' AND name = deliveries.handler)
            OR (scope = 'event' AND name = deliveries.event_type))"""

ADD = text("""
INSERT INTO pauses (scope, name, actor, reason, at)
SELECT :scope, name, :actor, :reason, now() FROM unnest(CAST(:names AS text[])) AS name
WHERE NOT EXISTS (SELECT FROM pauses WHERE scope = :scope AND pauses.name = ANY(:names))
ON CONFLICT DO NOTHING
""")

#: With the other names under which the same pause was written: a newer release may know more of them.
REMOVE = text("""
DELETE FROM pauses WHERE scope = :scope AND (at, actor) IN (
    SELECT at, actor FROM pauses WHERE scope = :scope AND name = ANY(:names))
""")

ACTIVE = text("SELECT scope, name, actor, reason, at FROM pauses ORDER BY at, name")


class Scope(StrEnum):
    """What a pause stops."""

    HANDLER = "handler"
    EVENT = "event"
    ALL = "all"


@dataclass(frozen=True)
class Pause:
    """What is paused, by whom, why and since when."""

    scope: Scope
    name: str  # empty if everything is paused
    actor: str
    reason: str
    at: datetime

    @property
    def subject(self) -> str:
        """Return what is paused, as a text."""
        return {Scope.HANDLER: self.name, Scope.EVENT: f"the event {self.name}", Scope.ALL: "everything"}[
            self.scope
        ]

    def stops(self, handlers: Iterable[str], event_type: str) -> bool:
        """Return whether it stops these events for the handler with these names."""
        names = {Scope.HANDLER: handlers, Scope.EVENT: (event_type,), Scope.ALL: ("",)}
        return self.name in names[self.scope]


def first_stop(pauses: Iterable[Pause], handlers: Sequence[str], event_type: str) -> Pause | None:
    """Return the oldest pause that stops these events for the handler with these names."""
    return next((pause for pause in pauses if pause.stops(handlers, event_type)), None)


class Pauses:
    """The pauses of one database."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._reading = threading.Lock()
        self._seen: list[Pause] | None = None
        self._seen_at = float("-inf")

    def add(self, scope: Scope, names: Sequence[str], actor: str, reason: str) -> bool:
        """Pause something that may have several names; return False if it is paused already."""
        facts = {"scope": scope, "names": list(names), "actor": actor, "reason": reason}
        with self._engine.begin() as connection:
            added = connection.execute(ADD, facts).rowcount > 0
            if added:
                connection.execute(NOTE, Entry(actor, "pause", _subject(scope, names), reason).facts)
        return added

    def remove(self, scope: Scope, names: Sequence[str], actor: str, reason: str | None) -> bool:
        """Resume it; return False if it is not paused."""
        with self._engine.begin() as connection:
            removed = connection.execute(REMOVE, {"scope": scope, "names": list(names)}).rowcount > 0
            if removed:
                connection.execute(NOTE, Entry(actor, "resume", _subject(scope, names), reason).facts)
        return removed

    def active(self) -> list[Pause]:
        """Return the pauses, the oldest first."""
        with self._engine.connect() as connection:
            return [Pause(Scope(row.scope), *row[1:]) for row in connection.execute(ACTIVE)]

    def seen(self) -> list[Pause]:
        """Return the pauses as they were at most `SEEN_S` ago, without asking the database each time.

        While they cannot be read, return what was read last. Until they have been read once, raise one of
        `DATABASE_ERRORS`: what is paused would run.
        """
        with self._reading:
            now = time.monotonic()
            if self._seen is None or not 0 <= now - self._seen_at < SEEN_S:
                self._seen, self._seen_at = self._read(), now
            return self._seen

    def _read(self) -> list[Pause]:
        try:
            return self.active()
        except DATABASE_ERRORS as error:
            logger.warning("Pauses cannot be read: %s", type(error).__name__)
            if self._seen is None:
                raise
            return self._seen

    def forget(self) -> None:
        """Read the pauses again when they are asked for."""
        self._seen_at = float("-inf")


def _subject(scope: Scope, names: Sequence[str]) -> str:
    return f"{scope} {names[0]}".strip()
