"""Attempts whose end their delivery's row does not know: of a worker that died, or that lost the row's lock.

Each is written in a transaction of its own that waits for no lock, and counted by whoever holds the row next.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Engine, text

from messaging.delivery import Failure

#: Written before an attempt begins that could be the next to kill its worker.
BEGIN = text("""
INSERT INTO open_attempts (token, delivery_id, run, state, worker)
VALUES (:token, :id, :run, 'begun', :worker)
""")

#: The same attempt may say so again, where it cannot know whether it was committed.
FAIL = text("""
INSERT INTO open_attempts (token, delivery_id, run, state, worker, error, traceback)
SELECT :token, id, reruns, 'failed', :worker, :error, :traceback FROM deliveries
WHERE id = :id AND status = 'pending' AND reruns = :run
ON CONFLICT (token) DO UPDATE SET state = 'failed', error = excluded.error, traceback = excluded.traceback
""")

#: Whoever holds the lock may be a dead worker's session, so the next attempt leaves a mark.
SEE = text("""
INSERT INTO open_attempts (token, delivery_id, run, state, worker)
SELECT :token, id, reruns, 'seen', :worker FROM deliveries WHERE id = :id AND status = 'pending'
ON CONFLICT DO NOTHING
""")

#: Adds the failures to the row, which the caller holds; counts the attempts that began and never ended.
#: What was seen stays: who sees the row locked again must not wait until this transaction ends.
COUNT = """
WITH taken AS (
    DELETE FROM open_attempts WHERE delivery_id = %(id)s AND run = %(run)s AND state = 'failed' RETURNING *
), failed AS (
    SELECT taken.*, attempts + row_number() OVER (ORDER BY taken.at) AS number
    FROM taken JOIN deliveries ON id = delivery_id
    WHERE NOT EXISTS (
        SELECT FROM attempts WHERE attempts.delivery_id = taken.delivery_id AND token = taken.token)
), listed AS (
    INSERT INTO attempts (delivery_id, run, number, at, worker, error, traceback, token)
    SELECT delivery_id, run, number, at, worker, error, traceback, token FROM failed
), counted AS (
    UPDATE deliveries SET
        attempts = number,
        status = CASE WHEN number >= %(attempts_allowed)s THEN 'failed' ELSE 'pending' END,
        finished_at = CASE WHEN number >= %(attempts_allowed)s THEN clock_timestamp() END,
        last_error = error, last_traceback = traceback, worker = failed.worker
    FROM failed WHERE id = delivery_id AND number = (SELECT max(number) FROM failed)
    RETURNING status
)
SELECT coalesce((SELECT status FROM counted), 'pending'),
       (SELECT count(*) FROM open_attempts
        WHERE delivery_id = %(id)s AND run = %(run)s AND state = 'begun')
"""

FORGET = "DELETE FROM open_attempts WHERE delivery_id = %(id)s"

PRUNE = text("""
DELETE FROM open_attempts WHERE ctid = ANY(ARRAY(
    SELECT ctid FROM open_attempts
    WHERE NOT EXISTS (SELECT FROM deliveries WHERE id = delivery_id AND status = 'pending' AND reruns = run)
    LIMIT :limit FOR UPDATE SKIP LOCKED))
""")


@dataclass(frozen=True)
class AttemptKey:
    """One attempt of one run of a delivery."""

    token: str
    id: str  # the delivery's
    run: int | None  # None where the row was locked, so that it is not known


@dataclass(frozen=True)
class OpenAttempts:
    """What workers note of their attempts beside the row."""

    engine: Engine

    def begin(self, key: AttemptKey, worker: str) -> None:
        """Note that an attempt begins; where it does not end, its worker died."""
        self._write(BEGIN, key, worker=worker)

    def fail(self, key: AttemptKey, failure: Failure) -> None:
        """Note that an attempt failed whose transaction is gone, unless its run is over."""
        self._write(FAIL, key, **vars(failure))

    def see(self, key: AttemptKey, worker: str) -> None:
        """Note that a redelivered message found its pending delivery locked."""
        self._write(SEE, key, worker=worker)

    def prune(self, limit: int) -> int:
        """Delete notes of runs that are over, at most `limit`; return how many went."""
        with self.engine.begin() as connection:
            return connection.execute(PRUNE, {"limit": limit}).rowcount

    def _write(self, statement: Any, key: AttemptKey, **facts: Any) -> None:
        with self.engine.begin() as connection:
            connection.execute(statement, {**vars(key), **facts})
