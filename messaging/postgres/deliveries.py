"""The outbox as a table: claim a delivery, count how its attempts end, send what is due again."""

from __future__ import annotations

from dataclasses import dataclass, field

from sqlalchemy import Engine, text

from messaging.delivery import Delivery, Failure, Status, new_id
from messaging.postgres.open_attempts import COUNT, FORGET, AttemptKey, OpenAttempts
from messaging.postgres.statement import Statement
from messaging.postgres.transaction import Transaction
from messaging.retry import RetryPolicy

CLAIM = Statement(
    """
SELECT id::text, event_type, payload, handler, correlation_id, causation_id, attempts, reruns,
       EXISTS (SELECT FROM open_attempts WHERE delivery_id = deliveries.id AND run = deliveries.reruns)
FROM deliveries WHERE id = $1 AND status = 'pending' FOR UPDATE SKIP LOCKED""",
    "uuid",
)

DONE = Statement(
    """
UPDATE deliveries SET status = 'done', finished_at = now(), attempts = attempts + 1, worker = $1
WHERE id = $2""",
    *("text", "uuid"),
)

#: The policy of an attempt that no other may follow.
NO_MORE = RetryPolicy(max_retries=-1)

#: Who re-runs by the clock, as `actions.actor` names it.
SCHEDULE = "schedule"

#: Any constant will do; it keeps two schedulers from counting the same re-runs under way.
SCHEDULER_LOCK = 4_177_012


@dataclass
class DeliveryJob:
    """A delivery to make: one attempt. The row's lock keeps copies of its message out until it is counted.

    A worker that dies leaves no trace in the row. Where there may have been one (the broker has brought the
    message before, or an attempt is open), the attempt leaves a mark before it begins (docs/adr/022).
    """

    id: str
    worker: str
    redelivered: bool = False
    correlation_id: str = ""
    delivery: Delivery | None = field(default=None, init=False)
    token: str = field(default_factory=new_id, init=False)
    open_attempts: bool = field(default=False, init=False)

    @property
    def is_doubtful(self) -> bool:
        """Tell whether an earlier attempt may have ended without being counted."""
        return self.redelivered or self.open_attempts

    def begin(self, transaction: Transaction) -> None:
        """Lock the row; `delivery` stays None when it is done, or being done by another copy."""
        rows = transaction.read(CLAIM, (self.id,))
        if rows:
            *facts, self.open_attempts = rows[0]
            self.delivery = Delivery(*facts)
            self.correlation_id = self.delivery.correlation_id

    def count_open_attempts(self, transaction: Transaction, attempts_allowed: int) -> tuple[Status, int]:
        """Count what earlier attempts of this run left open; return the state, and how many workers died."""
        [(status, deaths)] = transaction.read(COUNT, {**vars(self.key), "attempts_allowed": attempts_allowed})
        return Status(status), deaths

    def finish(self, transaction: Transaction, _result: object) -> None:
        """Write `done` beside the handler's own effects."""
        transaction.release()
        transaction.write(DONE, (self.worker, self.id))
        if self.is_doubtful:
            transaction.write(FORGET, vars(self.key))

    def fail(
        self, transaction: Transaction, failure: Failure, policy: RetryPolicy, grace_s: float
    ) -> Status | None:
        """Undo the handler's effects and count the attempt, while the row is still locked.

        The next attempt is due after the back-off; the relay sends it when its message is lost.
        """
        transaction.undo()
        status = _fail(transaction, self.key, failure, policy, grace_s)
        transaction.commit()
        return status

    def park(self, transaction: Transaction, failure: Failure, deaths: int) -> None:
        """Fail the delivery for good, since workers died of it."""
        _fail(transaction, self.key, failure, NO_MORE, 0.0, deaths)
        transaction.commit()

    @property
    def key(self) -> AttemptKey:
        """Return which attempt this is."""
        return AttemptKey(self.token, self.id, self.delivery.run if self.delivery else None)


def _fail(
    transaction: Transaction,
    key: AttemptKey,
    failure: Failure,
    policy: RetryPolicy,
    grace_s: float,
    crashes: int = 0,
    attempts: int | None = None,
) -> Status | None:
    """Count a failed attempt and return what the delivery is then; None where it is another by now."""
    facts = {
        "attempts": attempts,
        "attempts_allowed": policy.max_retries + 1,
        "backoff_s": float(policy.backoff_s),
        "backoff_max_s": float(policy.backoff_max_s),
        "grace_s": grace_s,
        "crashes": crashes,
    }
    rows = transaction.read(FAIL, {**vars(key), **vars(failure), **facts})
    return Status(rows[0][0]) if rows else None


@dataclass(frozen=True)
class DeliveryStore:
    """Deliveries as the worker and the housekeeping see them."""

    engine: Engine

    @property
    def open_attempts(self) -> OpenAttempts:
        """Return the attempts whose end the rows do not know."""
        return OpenAttempts(self.engine)

    def give_up(
        self, delivery_id: str, worker: str, error: BaseException, as_read: Delivery | None = None
    ) -> Status | None:
        """Fail a pending delivery for good that nobody handles; None where it is none.

        `as_read` restricts that to the run and the attempt that the caller has read.
        """
        key = AttemptKey(new_id(), delivery_id, as_read.run if as_read else None)
        attempts = as_read.attempts if as_read else None
        transaction = Transaction(self.engine)
        transaction.open()
        try:
            failure = Failure.of(worker, error)
            status = _fail(transaction, key, failure, NO_MORE, 0.0, attempts=attempts)
            transaction.commit()
        finally:
            transaction.close()
        return status

    def take_due(self, limit: int, grace_max_s: float) -> list[Delivery]:
        """Take pending deliveries whose message is overdue, and put their next turn off by twice the grace.

        Rows that a handler holds are skipped, so any number of relays share the work.
        """
        with self.engine.begin() as connection:
            rows = connection.execute(TAKE_DUE, {"limit": limit, "grace_max_s": grace_max_s}).all()
        return [Delivery(*row) for row in rows]

    def rerun_cooled(
        self, limit: int, rerun_max: int, cooldown_s: float, cooldown_max_s: float, grace_s: float
    ) -> list[Delivery]:
        """Put failed deliveries back to pending whose cool-down is over; it doubles with every re-run.

        No handler has more than `limit` such re-runs under way, and those that have the fewest come first,
        so one that always fails holds up no other. Returns what to send; nothing while another scheduler
        is at it.
        """
        facts = {
            "limit": limit,
            "rerun_max": rerun_max,
            "cooldown_s": cooldown_s,
            "cooldown_max_s": cooldown_max_s,
            "grace_s": grace_s,
            "automatic": True,
            "actor": SCHEDULE,
        }
        with self.engine.begin() as connection:
            if not connection.execute(ONE_SCHEDULER, {"lock": SCHEDULER_LOCK}).scalar_one():
                return []
            return [Delivery(*row) for row in connection.execute(RERUN_COOLED, facts)]

    def prune(self, retention_s: float, limit: int = 1000) -> int:
        """Delete deliveries that ended this many seconds ago, at most `limit`; return how many went."""
        with self.engine.begin() as connection:
            return connection.execute(PRUNE, {"age": retention_s, "limit": limit}).rowcount


#: `run` and `attempts` are those that the caller knows; NULL fits any.
FAIL = """
WITH held AS (
    SELECT id FROM deliveries
    WHERE id = %(id)s AND status = 'pending' AND reruns = coalesce(%(run)s, reruns)
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
        last_error = %(error)s, last_traceback = %(traceback)s, worker = %(worker)s
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

TAKE_DUE = text("""
WITH due AS (
    SELECT id FROM deliveries WHERE status = 'pending' AND due_at <= now()
    ORDER BY due_at LIMIT :limit FOR UPDATE SKIP LOCKED
)
UPDATE deliveries SET
    grace_s = least(grace_s * 2, :grace_max_s),
    due_at = now() + make_interval(secs => least(grace_s * 2, :grace_max_s))
FROM due WHERE deliveries.id = due.id
RETURNING deliveries.id::text, event_type, payload, handler, correlation_id, causation_id, attempts, reruns
""")

#: Puts the rows of `chosen` back to pending and returns them as `Delivery` has its fields.
PUT_BACK = """
back AS (
    UPDATE deliveries SET
        status = 'pending', finished_at = NULL, attempts = 0, crashes = 0, reruns = reruns + 1,
        auto_reruns = CASE WHEN :automatic THEN auto_reruns + 1 ELSE 0 END,
        grace_s = :grace_s, due_at = now() + make_interval(secs => :grace_s)
    FROM chosen WHERE deliveries.id = chosen.id AND deliveries.status = 'failed'
    RETURNING deliveries.*
), noted AS (
    INSERT INTO actions (delivery_id, action, actor) SELECT id, 'rerun', :actor FROM back
)
SELECT id::text, event_type, payload, handler, correlation_id, causation_id, attempts, reruns FROM back
"""

ONE_SCHEDULER = text("SELECT pg_try_advisory_xact_lock(:lock)")

#: What the schedule may put back. It holds for a row as it was when it was looked for, and again for the
#: row as it is once it is locked: an operator may have re-run it meanwhile, and it may have failed again.
HAS_COOLED = """
status = 'failed' AND auto_reruns < :rerun_max
AND crashes = 0  -- what kills its workers waits for an operator
AND finished_at < now() - make_interval(secs =>
    least(:cooldown_max_s, :cooldown_s * power(2, least(auto_reruns, 30))))
"""

RERUN_COOLED = text(f"""
WITH under_way AS (
    SELECT handler, count(*) AS count FROM deliveries
    WHERE status = 'pending' AND auto_reruns > 0 GROUP BY handler
), cooled AS (
    SELECT id, coalesce(under_way.count, 0)
               + row_number() OVER (PARTITION BY handler ORDER BY finished_at) AS turn
    FROM deliveries LEFT JOIN under_way USING (handler) WHERE {HAS_COOLED}
), chosen AS (
    SELECT deliveries.id FROM deliveries JOIN cooled USING (id)
    WHERE {HAS_COOLED} AND turn <= :limit ORDER BY turn LIMIT :limit
    FOR UPDATE OF deliveries SKIP LOCKED
), {PUT_BACK}""")  # noqa: S608  # put together from constants

#: By `ctid`, since the rows are locked; two that prune at once take different ones.
PRUNE = text("""
DELETE FROM deliveries WHERE ctid = ANY(ARRAY(
    SELECT ctid FROM deliveries
    WHERE status IN ('done', 'discarded') AND finished_at < now() - make_interval(secs => :age)
    ORDER BY finished_at LIMIT :limit FOR UPDATE SKIP LOCKED))
""")
