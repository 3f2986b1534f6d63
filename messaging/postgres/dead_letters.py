"""Messages that no task could read, kept as they came."""

from __future__ import annotations

import json
from dataclasses import dataclass

from sqlalchemy import Engine, text

from messaging.dead_letters import DeadLetter
from messaging.delivery import new_id

INSERT = text("""
INSERT INTO dead_letters
    (id, reason, task, task_id, queue,
     content_type, content_encoding, headers, properties, body, error)
VALUES
    (:id, :reason, :task, :task_id, :queue,
     :content_type, :content_encoding, :headers, :properties, :body, :error)
""")


@dataclass(frozen=True)
class PostgresDeadLetterStore:
    """Implements the port `DeadLetterStore`."""

    engine: Engine

    def add(self, letter: DeadLetter) -> None:
        """Keep a letter, committed on return."""
        with self.engine.begin() as connection:
            connection.execute(INSERT, {"id": new_id(), **_row(letter)})

    def prune(self, retention_s: float, limit: int = 100) -> int:
        """Delete letters older than this many seconds, at most `limit`; return how many went."""
        with self.engine.begin() as connection:
            return connection.execute(
                text(
                    "DELETE FROM dead_letters WHERE ctid = ANY(ARRAY(SELECT ctid FROM dead_letters"
                    " WHERE at < now() - make_interval(secs => :age)"
                    " ORDER BY at LIMIT :limit FOR UPDATE SKIP LOCKED))"
                ),
                {"age": retention_s, "limit": limit},
            ).rowcount


def _row(letter: DeadLetter) -> dict[str, object]:
    return {
        "reason": _storable(letter.reason),
        "task": _storable(letter.task),
        "task_id": _storable(letter.task_id),
        "queue": _storable(letter.queue),
        "content_type": _storable(letter.content_type),
        "content_encoding": _storable(letter.content_encoding),
        "headers": json.dumps(letter.headers, default=repr),
        "properties": json.dumps(letter.properties, default=repr),
        "body": letter.body,
        "error": _storable(letter.error),
    }


def _storable(value: object) -> str | None:
    """Return text that PostgreSQL takes: no NUL, no half of a surrogate pair."""
    if value is None:
        return None
    return str(value).replace("\x00", "\\x00").encode("utf-8", "backslashreplace").decode()
