"""Commands that were answered, and messages whose workers died."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine, text

from messaging.errors import InvalidMessage
from messaging.messages import Command


@dataclass(frozen=True)
class Answer:
    """What a command came to, the first time."""

    command: str
    result: Any


@dataclass(frozen=True)
class Inbox:
    """Answers by task id."""

    engine: Engine

    def answer(self, task_id: str, command: Command) -> Answer | None:
        """Return the first answer to this message, None where it was never carried out.

        Raises:
            InvalidMessage: the id was used for another command.
        """
        with self.engine.begin() as connection:
            row = connection.execute(
                text("SELECT command, result FROM inbox WHERE task_id = :id"), {"id": task_id}
            ).one_or_none()
        if row is None:
            return None
        if row.command != repr(command):
            raise InvalidMessage("id", "was used before, for another command")
        return Answer(row.command, row.result)

    def count_crash(self, task_id: str) -> int:
        """Note that a redelivered message is begun once more; return how often that was."""
        with self.engine.begin() as connection:
            count: int = connection.execute(
                text(
                    "INSERT INTO crashes (task_id) VALUES (:id)"
                    " ON CONFLICT (task_id) DO UPDATE SET count = crashes.count + 1, at = now()"
                    " RETURNING count"
                ),
                {"id": task_id},
            ).scalar_one()
        return count

    def forget_crashes(self, task_id: str) -> None:
        """Note that a redelivered message was handled, whatever came of it."""
        with self.engine.begin() as connection:
            connection.execute(text("DELETE FROM crashes WHERE task_id = :id"), {"id": task_id})

    def prune(self, retention_s: float, limit: int = 5000) -> int:
        """Delete answers older than this many seconds, at most `limit`; return how many went."""
        with self.engine.begin() as connection:
            gone = connection.execute(
                text(
                    "DELETE FROM inbox WHERE ctid = ANY(ARRAY("
                    " SELECT ctid FROM inbox WHERE at < now() - make_interval(secs => :age) LIMIT :limit))"
                ),
                {"age": retention_s, "limit": limit},
            )
            connection.execute(
                text("DELETE FROM crashes WHERE at < now() - make_interval(secs => :age)"),
                {"age": retention_s},
            )
        return gone.rowcount
