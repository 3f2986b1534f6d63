"""Messages that no task could read, kept as they came."""

from __future__ import annotations

import json
from dataclasses import dataclass

from sqlalchemy import Engine, text

from messaging.dead_letters import DeadLetter
from messaging.delivery import new_id
from messaging.texts import storable

INSERT = text("""
INSERT INTO dead_letters
    (id, reason, task, task_id, queue,
     content_type, content_encoding, headers, properties, body, error)
VALUES
    (:id, :reason, :task, :task_id, :queue,
     :content_type, :content_encoding, :headers, :properties, :body, :error)
""")

#: What one transaction of the pruning deletes at most: so many letters, or so many bytes as they are stored
#: (and one letter more), which takes a fraction of a second.
PRUNED_LETTERS, PRUNED_BYTES = 500, 16_777_216

PRUNE = text("""
DELETE FROM dead_letters WHERE id = ANY(ARRAY(
    SELECT id FROM (
        SELECT id, sum(size) OVER (ORDER BY at, id) - size AS bytes_before FROM (
            SELECT id, at, pg_column_size(body) + pg_column_size(headers) AS size FROM dead_letters
            WHERE at < now() - make_interval(secs => :age)
            ORDER BY at LIMIT :limit FOR UPDATE SKIP LOCKED
        ) old
    ) measured WHERE bytes_before < :bytes))
""")


@dataclass(frozen=True)
class PostgresDeadLetterStore:
    """Implements the port `DeadLetterStore`."""

    engine: Engine

    def add(self, letter: DeadLetter) -> None:
        """Keep a letter, committed on return."""
        with self.engine.begin() as connection:
            connection.execute(INSERT, {"id": new_id(), **_row(letter)})

    def prune(self, retention_s: float, limit: int = 5000) -> int:
        """Delete letters older than this many seconds, at most `limit`, a few in a transaction.

        Returns how many went. One that somebody works with is left to the next run.
        """
        gone = 0
        while gone < limit and (some := self._prune_some(retention_s, min(limit - gone, PRUNED_LETTERS))):
            gone += some
        return gone

    def _prune_some(self, retention_s: float, limit: int) -> int:
        facts = {"age": retention_s, "limit": limit, "bytes": PRUNED_BYTES}
        with self.engine.begin() as connection:
            return connection.execute(PRUNE, facts).rowcount


def _row(letter: DeadLetter) -> dict[str, object]:
    return {
        "reason": _text(letter.reason),
        "task": _text(letter.task),
        "task_id": _text(letter.task_id),
        "queue": _text(letter.queue),
        "content_type": _text(letter.content_type),
        "content_encoding": _text(letter.content_encoding),
        "headers": json.dumps(letter.headers, default=repr),
        "properties": json.dumps(letter.properties, default=repr),
        "body": letter.body,
        "error": _text(letter.error),
    }


def _text(value: object) -> str | None:
    return None if value is None else storable(str(value))
