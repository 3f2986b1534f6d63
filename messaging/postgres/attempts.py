"""One worker's attempt at a delivery: it claims the row, and records the outcome.

When an attempt's outcome cannot be written to the delivery's row, because its worker died or lost the lock,
it is a row in `open_attempts`. That row is written in a transaction that waits for no lock, and counted by
the next worker that locks the delivery. (docs/adr/022)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Engine, text

from messaging.delivery import Delivery, Failure, Status, Waits, new_id
from messaging.postgres.effects import Effects
from messaging.postgres.states import is_in
from messaging.postgres.transaction import Row, Statement, Transaction
from messaging.postgres.waiting import Wait, hold
from messaging.retry import RetryPolicy

CLAIM_COLUMNS = """
id::text, event_type, payload, handler, correlation_id, causation_id, attempts, reruns,
EXISTS (SELECT FROM open_attempts WHERE delivery_id = deliveries.id AND run = deliveries.reruns),
CASE WHEN attempts + reruns = 0 THEN extract(epoch FROM clock_timestamp() - created_at)::float END"""

PENDING = f"{is_in(Status.PENDING)} FOR UPDATE SKIP LOCKED"

CLAIM_FROM = f"FROM deliveries WHERE id = $1 AND {PENDING}"

CLAIM = Statement(f"SELECT {CLAIM_COLUMNS} {CLAIM_FROM}", "uuid")

#: One step of the primary key for each id, however small the table was when this was planned.
CLAIM_ALL = Statement(
    f"""
SELECT claimed.* FROM unnest($1::uuid[]) AS wanted (id), LATERAL (
    SELECT {CLAIM_COLUMNS} FROM deliveries WHERE deliveries.id = wanted.id AND {PENDING}
) claimed""",
    "text[]",
)

DONE = Statement(
    """
UPDATE deliveries SET status = 'done', finished_at = now(), attempts = attempts + 1, worker = $1, effects = $3
WHERE id = $2""",
    *("text", "uuid", "json"),
)

#: `run` and `attempts` are those that the caller has read; NULL matches any.
FAIL = f"""
WITH held AS (
    SELECT id FROM deliveries
    WHERE id = %(id)s AND {is_in(Status.PENDING)} AND reruns = coalesce(%(run)s, reruns)
      AND attempts = coalesce(%(attempts)s, attempts)
    FOR UPDATE SKIP LOCKED
), failed AS (
    UPDATE deliveries SET
        attempts = attempts + 1,
        status = CASE WHEN attempts + 1 >= %(attempts_allowed)s THEN 'failed' ELSE 'pending' END,
        finished_at = CASE WHEN attempts + 1 >= %(attempts_allowed)s THEN clock_timestamp() END,
        due_at = clock_timestamp() + make_interval(secs =>
            least(%(backoff_max_s)s, %(backoff_s)s * power(2, least(attempts, 30))) + %(grace_s)s),
        grace_s = %(grace_s)s,
        crashes = %(crashes)s,
        last_error = %(error)s, last_traceback = %(traceback)s, worker = %(worker)s,
        failure_group = left(md5(handler || %(fingerprint)s), 10)
    FROM held WHERE deliveries.id = held.id
    RETURNING deliveries.id, status, attempts, reruns
), listed AS (
    INSERT INTO attempts (delivery_id, run, number, worker, error, traceback, token)
    SELECT id, reruns, attempts, %(worker)s, %(error)s, %(traceback)s, %(token)s FROM failed
), closed AS (
    DELETE FROM open_attempts WHERE token = %(token)s
)
SELECT status FROM failed
"""

#: Written before an attempt that may kill its worker.
NOTE_BEGUN = """
INSERT INTO open_attempts (token, delivery_id, run, state, worker)
VALUES (%(token)s, %(id)s, %(run)s, 'begun', %(worker)s)"""

#: The same attempt may repeat this if it does not know whether it was committed. The delivery may have been
#: put aside meanwhile.
NOTE_FAILED = text("""
INSERT INTO open_attempts (token, delivery_id, run, state, worker, error, traceback, fingerprint, is_trial)
SELECT :token, id, reruns, 'failed', :worker, :error, :traceback, :fingerprint, :is_trial FROM deliveries
WHERE id = :id AND finished_at IS NULL AND reruns = :run
ON CONFLICT (token) DO UPDATE SET
    state = 'failed', error = excluded.error, traceback = excluded.traceback,
    fingerprint = excluded.fingerprint, is_trial = excluded.is_trial
""")

#: A worker may have died, and the lock may belong to its session, so the next attempt is recorded.
NOTE_SEEN = """
INSERT INTO open_attempts (token, delivery_id, run, state, worker)
SELECT %(token)s, id, reruns, 'seen', %(worker)s FROM deliveries WHERE id = %(id)s AND finished_at IS NULL
ON CONFLICT DO NOTHING"""

#: Adds the failures to the row, which the caller has locked; counts the attempts that never ended.
#: 'seen' rows stay: another worker that finds the row locked must not wait for this transaction.
COUNT_OPEN = """
WITH taken AS (
    DELETE FROM open_attempts WHERE delivery_id = %(id)s AND run = %(run)s AND state = 'failed' RETURNING *
), failed AS (
    SELECT taken.*, attempts + row_number() OVER (ORDER BY taken.at) AS number
    FROM taken JOIN deliveries ON id = delivery_id
    WHERE NOT EXISTS (
        SELECT FROM attempts WHERE attempts.delivery_id = taken.delivery_id AND token = taken.token)
), ends AS (
    SELECT coalesce(bool_or(number >= %(attempts_allowed)s AND NOT is_trial), false) AS for_good FROM failed
), listed AS (
    INSERT INTO attempts (delivery_id, run, number, at, worker, error, traceback, token)
    SELECT delivery_id, run, number, at, worker, error, traceback, token FROM failed
), counted AS (
    UPDATE deliveries SET
        attempts = number,
        status = CASE WHEN for_good THEN 'failed' ELSE 'pending' END,
        finished_at = CASE WHEN for_good THEN clock_timestamp() END,
        last_error = error, last_traceback = traceback, worker = failed.worker,
        failure_group = left(md5(handler || fingerprint), 10)
    FROM failed, ends WHERE id = delivery_id AND number = (SELECT max(number) FROM failed)
    RETURNING status
)
SELECT coalesce((SELECT status FROM counted), 'pending'),
       (SELECT count(*) FROM open_attempts
        WHERE delivery_id = %(id)s AND run = %(run)s AND state = 'begun')
"""

CLOSE = "DELETE FROM open_attempts WHERE token = %(token)s"

FORGET_OPEN = "DELETE FROM open_attempts WHERE delivery_id = %(id)s"

#: The policy of the last attempt.
NO_MORE = RetryPolicy(max_retries=-1)


@dataclass
class Attempt:
    """One attempt at one run of a delivery. The row's lock excludes other copies of its message.

    A worker that dies leaves no trace in the row. If one may have died (the message was redelivered, or an
    attempt is open), the attempt is doubtful: its start is recorded before the handler runs.
    """

    engine: Engine
    id: str  # the delivery's
    worker: str
    redelivered: bool = False
    delivery: Delivery | None = None  # when it was claimed
    token: str = field(default_factory=new_id)
    has_open: bool = False  # earlier attempts of this run are open
    waited_s: float | None = None  # since its event was raised; None if it is not the first attempt
    is_trial: bool = False  # its handler's breaker is half-open; its failure is not the delivery's last
    failure: Failure | None = None  # if the handler failed
    effects: Effects = field(default_factory=Effects)
    shares: Transaction | None = None

    @property
    def correlation_id(self) -> str:
        """Return the id of the original command."""
        return self.delivery.correlation_id if self.delivery else ""

    @property
    def is_doubtful(self) -> bool:
        """Return whether an earlier attempt may have ended without being counted."""
        return self.redelivered or self.has_open

    def claim(self, transaction: Transaction) -> Delivery | None:
        """Lock the delivery and return it; None when it is done, or another worker has locked it."""
        rows = transaction.read(CLAIM, (self.id,))
        if rows:
            self.claimed(rows[0])
        return self.delivery

    def claimed(self, row: Row) -> None:
        """Note the row that was locked."""
        *facts, self.has_open, self.waited_s = row
        self.delivery = Delivery(*facts)

    def count_open(self, transaction: Transaction, attempts_allowed: int) -> tuple[Status, int]:
        """Count the open attempts of this run; return the state, and how many workers died."""
        [(status, deaths)] = transaction.read(COUNT_OPEN, self._facts(attempts_allowed=attempts_allowed))
        return Status(status), deaths

    def finish(self, transaction: Transaction, _result: object) -> None:
        """Write `done` beside the handler's own effects."""
        transaction.release()
        transaction.write(DONE, (self.worker, self.id, self.effects.stored()))
        if self.is_doubtful:
            transaction.write(FORGET_OPEN, self._facts())

    def fail(
        self,
        transaction: Transaction,
        failure: Failure,
        policy: RetryPolicy,
        grace_s: float,
        error: BaseException | None = None,  # noqa: ARG002  a breaker looks at it
    ) -> Status | None:
        """Undo the handler's effects and count the attempt, while the row is still locked.

        The next attempt is due after the back-off; the relay sends it if its message is lost.
        """
        transaction.undo()
        status = self.count_failure(transaction, failure, policy, grace_s)
        transaction.commit()
        return status

    def postpone(self, transaction: Transaction, wait_s: float) -> None:
        """Undo the handler's effects and put the delivery aside for so many seconds, without an attempt."""
        transaction.undo()
        if self.is_doubtful:
            transaction.write(CLOSE, self._facts())
        self.mark_redelivered(transaction)
        hold(transaction, self.id, Wait(Waits.TIME, wait_s=wait_s))
        self.delivery = None

    def park(self, transaction: Transaction, failure: Failure, deaths: int) -> None:
        """Fail the delivery for good because it killed workers."""
        self.count_failure(transaction, failure, NO_MORE, crashes=deaths)
        transaction.commit()

    def count_failure(
        self,
        transaction: Transaction,
        failure: Failure,
        policy: RetryPolicy,
        grace_s: float = 0.0,
        crashes: int = 0,
        attempts: int | None = None,
    ) -> Status | None:
        """Count a failed attempt and return the delivery's state; None if its state has changed."""
        facts = {
            "attempts": attempts,
            "attempts_allowed": policy.max_retries + 1,
            "backoff_s": float(policy.backoff_s),
            "backoff_max_s": float(policy.backoff_max_s),
            "grace_s": grace_s,
            "crashes": crashes,
        }
        rows = transaction.read(FAIL, self._facts(**vars(failure), **facts))
        return Status(rows[0][0]) if rows else None

    def begin(self, transaction: Transaction) -> bool:
        """Record the start of this attempt; if it never ends, its worker died. False if another has the row.

        A second session does that beside the row's lock. Where sessions are shared, attempts that keep one
        while they wait for another may all wait, so there the row is locked again after a commit.
        """
        if not transaction.shares_sessions:
            with Transaction(self.engine) as own:
                own.write(NOTE_BEGUN, self._facts())
                own.commit()
            return True
        transaction.write(NOTE_BEGUN, self._facts())
        transaction.commit()
        self.delivery = None
        if self.claim(transaction) is not None:
            return True
        transaction.write(CLOSE, self._facts())
        transaction.commit()
        return False

    def note_failed(self, failure: Failure) -> None:
        """Record this attempt's failure after its transaction was lost, unless its run is over."""
        with self.engine.begin() as connection:
            connection.execute(NOTE_FAILED, self._facts(**vars(failure), is_trial=self.is_trial))

    def note_seen(self, transaction: Transaction) -> None:
        """Record that a redelivered message found its delivery locked or waiting."""
        transaction.write(NOTE_SEEN, self._facts())
        transaction.commit()

    def mark_redelivered(self, transaction: Transaction) -> None:
        """Write that a worker may have died: the message that ends the delivery's wait will not say so."""
        if self.redelivered:
            # Not under this attempt's token, with which its own record is deleted.
            transaction.write(NOTE_SEEN, self._facts(token=new_id()))

    def _facts(self, **facts: Any) -> dict[str, Any]:
        run = self.delivery.reruns if self.delivery else None
        return {"token": self.token, "id": self.id, "run": run, "worker": self.worker, **facts}


def claim_all(transaction: Transaction, attempts: Iterable[Attempt]) -> list[Attempt]:
    """Lock the deliveries of attempts that have no gate; return those that were locked."""
    by_id = {attempt.id: attempt for attempt in attempts}
    rows = transaction.read(CLAIM_ALL, (list(by_id),))
    for row in rows:
        by_id[row[0]].claimed(row)
    return [by_id[row[0]] for row in rows]
