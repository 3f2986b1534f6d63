"""Dead letters: messages that no task could run, stored until an operator replays or discards them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine, text

from messaging.dead_letters import DeadLetter
from messaging.delivery import new_id
from messaging.errors import MessagingError
from messaging.postgres.audit import NOTE, Entry
from messaging.texts import storable
from reliable_celery.dead_letters import DeadLetter as ReceivedLetter

INSERT = text("""
INSERT INTO dead_letters
    (id, reason, task, task_id, queue,
     content_type, content_encoding, headers, properties, body, error)
VALUES
    (:id, :reason, :task, :task_id, :queue,
     :content_type, :content_encoding, :headers, :properties, :body, :error)
""")

#: Limits of one pruning transaction: letters, or stored bytes (plus one letter). It takes a fraction of a
#: second.
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

#: Bytes of the body, and characters of the headers, that lists show: a body may have 16 MiB.
HEAD = 4096

SUMMARY = f"""
id::text, reason, task, task_id, queue, content_type, content_encoding, error,
at, replayed_at, discarded_at, discard_reason,
octet_length(body) AS body_bytes, substring(body FROM 1 FOR {HEAD}) AS body_head,
left(headers::text, {HEAD}) AS headers_head"""

WHOLE = f"{SUMMARY}, headers, properties, body"

#: The condition of each state; each has its own index.
STATES = {
    "open": "replayed_at IS NULL AND discarded_at IS NULL",
    "replayed": "replayed_at IS NOT NULL",
    "discarded": "discarded_at IS NOT NULL",
    "all": "true",
}


class NotReplayable(MessagingError):
    """Replaying the message would not help, or was already done."""


@dataclass(frozen=True)
class DeadLetters:
    """The dead letters of one database."""

    engine: Engine

    def add(self, letter: ReceivedLetter) -> None:
        """Store a letter and commit."""
        with self.engine.begin() as connection:
            connection.execute(INSERT, _row(letter))

    def find(
        self,
        state: str = "open",
        reason: str | None = None,
        task: str | None = None,
        limit: int = 50,
        skip: int = 0,
    ) -> list[DeadLetter]:
        """Return the newest `limit` letters after `skip`, with only the beginnings of their messages.

        `state` is one of `STATES`; `reason` and `task` match parts of the text.
        """
        parts = {name: value and storable(value) for name, value in (("reason", reason), ("task", task))}
        # Selected first, so that no body is read only to be sorted and dropped.
        query = text(
            f"SELECT {SUMMARY} FROM dead_letters WHERE id = ANY(ARRAY("
            f" SELECT id FROM dead_letters WHERE {STATES[state]}"
            "  AND (CAST(:reason AS text) IS NULL OR position(lower(:reason) in lower(reason)) > 0)"
            "  AND (CAST(:task AS text) IS NULL OR position(lower(:task) in lower(task)) > 0)"
            "  ORDER BY at DESC, id DESC LIMIT :limit OFFSET :skip)) ORDER BY at DESC, id DESC"
        )
        with self.engine.connect() as connection:
            rows = connection.execute(query, {**parts, "limit": limit, "skip": skip})
            return [_from_row(row) for row in rows]

    def get(self, letter_id: str) -> DeadLetter | None:
        """Return one letter with its whole message."""
        with self.engine.connect() as connection:
            return _get(connection, WHOLE, letter_id)

    @contextmanager
    def replaying(self, letter_id: str, actor: str) -> Iterator[DeadLetter]:
        """Yield an open letter to replay; it is marked as replayed, and audited, when the block succeeds.

        Raises:
            NotReplayable: it was settled before.
        """
        with self.engine.begin() as connection:
            letter = _lock_open(connection, WHOLE, letter_id)
            # Marked first: if this failed after the message was sent, it would be sent again.
            connection.execute(
                text("UPDATE dead_letters SET replayed_at = now() WHERE id = :id"), {"id": letter_id}
            )
            _note(connection, actor, "replay", letter_id)
            yield letter

    def discard(self, letter_id: str, reason: str, actor: str) -> DeadLetter:
        """Discard a letter for good, and audit it.

        Raises:
            NotReplayable: it was settled before.
        """
        with self.engine.begin() as connection:
            letter = _lock_open(connection, SUMMARY, letter_id)
            query = text(
                "UPDATE dead_letters SET discarded_at = now(), discard_reason = :reason WHERE id = :id"
            )
            connection.execute(query, {"id": letter_id, "reason": storable(reason)})
            _note(connection, actor, "discard", letter_id, storable(reason))
        return letter

    def prune(self, retention_s: float, limit: int = 5000) -> int:
        """Delete letters older than this many seconds, at most `limit`, a few per transaction.

        Returns how many were deleted. Locked letters are left to the next run.
        """
        gone = 0
        while gone < limit and (some := self._prune_some(retention_s, min(limit - gone, PRUNED_LETTERS))):
            gone += some
        return gone

    def _prune_some(self, retention_s: float, limit: int) -> int:
        facts = {"age": retention_s, "limit": limit, "bytes": PRUNED_BYTES}
        with self.engine.begin() as connection:
            return connection.execute(PRUNE, facts).rowcount


def _get(connection: Connection, columns: str, letter_id: str, lock: str = "") -> DeadLetter | None:
    query = text(f"SELECT {columns} FROM dead_letters WHERE id = CAST(:id AS uuid) {lock}")
    row = connection.execute(query, {"id": letter_id}).one_or_none()
    return _from_row(row) if row else None


def _lock_open(connection: Connection, columns: str, letter_id: str) -> DeadLetter:
    letter = _get(connection, columns, letter_id, "FOR UPDATE")
    if letter is None:
        raise NotReplayable(f"There is no dead letter {letter_id}")
    if letter.state != "open":
        raise NotReplayable(f"Dead letter {letter_id} has already been {letter.state}")
    return letter


def _note(connection: Connection, actor: str, action: str, letter_id: str, reason: str | None = None) -> None:
    entry = Entry(actor, action, f"dead letter {letter_id}", reason, 1, "done")
    connection.execute(NOTE, entry.facts)


def _from_row(row: Any) -> DeadLetter:
    facts: dict[str, Any] = dict(row._mapping)
    bodies = {name: bytes(value) for name, value in facts.items() if isinstance(value, memoryview)}
    return DeadLetter(**{**facts, **bodies})


def _row(letter: ReceivedLetter) -> dict[str, object]:
    facts = {name: storable(fact) if isinstance(fact, str) else fact for name, fact in vars(letter).items()}
    return {
        **facts,
        "id": new_id(),
        "headers": json.dumps(letter.headers, default=repr),
        "properties": json.dumps(letter.properties, default=repr),
    }
