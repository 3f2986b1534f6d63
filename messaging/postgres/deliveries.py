"""The outbox as a table: claim a delivery, finish it, note its failures, send what is due again."""

from __future__ import annotations

import traceback
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Engine, text

from messaging.delivery import Delivery, Status
from messaging.errors import describe
from messaging.postgres.statement import Statement
from messaging.postgres.transaction import Transaction
from messaging.retry import RetryPolicy

CLAIM = Statement(
    """
SELECT id::text, event_type, payload, handler, correlation_id, causation_id, attempts
FROM deliveries WHERE id = $1 AND status = 'pending' FOR UPDATE SKIP LOCKED""",
    "uuid",
)

DONE = Statement(
    """
UPDATE deliveries SET status = 'done', finished_at = now(), attempts = attempts + 1, worker = $1
WHERE id = $2""",
    *("text", "uuid"),
)

#: Who re-runs by the clock, as `actions.actor` names it.
SCHEDULE = "schedule"

#: Any constant will do; it keeps two schedulers from counting the same re-runs under way.
SCHEDULER_LOCK = 4_177_012


@dataclass
class DeliveryJob:
    """A delivery to make. The row's lock keeps copies of its message out while the handler runs."""

    id: str
    worker: str
    correlation_id: str = ""
    delivery: Delivery | None = field(default=None, init=False)

    def begin(self, transaction: Transaction) -> None:
        """Lock the row; `delivery` stays None when it is done, or being done by another copy."""
        rows = transaction.read(CLAIM, (self.id,))
        if rows:
            self.delivery = Delivery(*rows[0])
            self.correlation_id = self.delivery.correlation_id

    def finish(self, transaction: Transaction, _result: object) -> None:
        """Write `done` beside the handler's own effects."""
        transaction.write(DONE, (self.worker, self.id))


@dataclass(frozen=True)
class DeliveryStore:
    """Deliveries as the worker and the housekeeping see them."""

    engine: Engine

    def record_failure(
        self, delivery_id: str, worker: str, error: BaseException, policy: RetryPolicy, grace_s: float
    ) -> Status | None:
        """Count a failed attempt; the row says when they are used up. None if it was no longer pending.

        The next attempt is due after the back-off; the relay sends it when its message is lost.
        """
        return self._fail(
            delivery_id,
            worker=worker,
            error=describe(error),
            trace="".join(traceback.format_exception(error)).replace("\x00", "\\x00"),
            attempts_allowed=policy.max_retries + 1,
            backoff_s=float(policy.backoff_s),
            backoff_max_s=float(policy.backoff_max_s),
            grace_s=grace_s,
        )

    def give_up(self, delivery_id: str, worker: str, error: BaseException) -> Status | None:
        """Count a failed attempt that no other may follow."""
        return self._fail(
            delivery_id,
            worker=worker,
            error=describe(error),
            trace="",
            attempts_allowed=0,
            backoff_s=0.0,
            backoff_max_s=0.0,
            grace_s=0.0,
        )

    def _fail(self, delivery_id: str, **facts: Any) -> Status | None:
        with self.engine.begin() as connection:
            status = connection.execute(FAIL, {"id": delivery_id, **facts}).scalar_one_or_none()
        return Status(status) if status else None

    def count_crash(self, delivery_id: str) -> int:
        """Note that a redelivered message is begun once more; return how often that was, 0 if not pending."""
        with self.engine.begin() as connection:
            crashes = connection.execute(
                text(
                    "UPDATE deliveries SET crashes = crashes + 1 WHERE id IN (SELECT id FROM deliveries"
                    " WHERE id = :id AND status = 'pending' FOR UPDATE SKIP LOCKED) RETURNING crashes"
                ),
                {"id": delivery_id},
            ).scalar_one_or_none()
        return crashes or 0

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

    def prune(self, retention_s: float, limit: int = 5000) -> int:
        """Delete deliveries that ended this many seconds ago, at most `limit`; return how many went."""
        with self.engine.begin() as connection:
            return connection.execute(PRUNE, {"age": retention_s, "limit": limit}).rowcount


FAIL = text("""
WITH failed AS (
    UPDATE deliveries SET
        attempts = attempts + 1,
        status = CASE WHEN attempts + 1 >= :attempts_allowed THEN 'failed' ELSE 'pending' END,
        finished_at = CASE WHEN attempts + 1 >= :attempts_allowed THEN clock_timestamp() END,
        due_at = now() + make_interval(secs =>
            least(:backoff_max_s, :backoff_s * power(2, least(attempts, 30))) + :grace_s),
        grace_s = :grace_s,
        -- What ends with an error has not killed its worker; what is given up keeps the count.
        crashes = CASE WHEN :attempts_allowed = 0 THEN crashes ELSE 0 END,
        last_error = :error, last_traceback = :trace, worker = :worker
    WHERE id = :id AND status = 'pending'
    RETURNING id, status, attempts, reruns
), attempt AS (
    INSERT INTO attempts (delivery_id, run, number, worker, error, traceback)
    SELECT id, reruns, attempts, :worker, :error, :trace FROM failed
)
SELECT status FROM failed
""")

TAKE_DUE = text("""
WITH due AS (
    SELECT id FROM deliveries WHERE status = 'pending' AND due_at <= now()
    ORDER BY due_at LIMIT :limit FOR UPDATE SKIP LOCKED
)
UPDATE deliveries SET
    grace_s = least(grace_s * 2, :grace_max_s),
    due_at = now() + make_interval(secs => least(grace_s * 2, :grace_max_s))
FROM due WHERE deliveries.id = due.id
RETURNING deliveries.id::text, event_type, payload, handler, correlation_id, causation_id, attempts
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
SELECT id::text, event_type, payload, handler, correlation_id, causation_id, attempts FROM back
"""

ONE_SCHEDULER = text("SELECT pg_try_advisory_xact_lock(:lock)")

RERUN_COOLED = text(f"""
WITH under_way AS (
    SELECT handler, count(*) AS count FROM deliveries
    WHERE status = 'pending' AND auto_reruns > 0 GROUP BY handler
), cooled AS (
    SELECT id, coalesce(under_way.count, 0)
               + row_number() OVER (PARTITION BY handler ORDER BY finished_at) AS turn
    FROM deliveries LEFT JOIN under_way USING (handler)
    WHERE status = 'failed' AND auto_reruns < :rerun_max
      AND crashes = 0  -- what kills its workers waits for an operator
      AND finished_at < now() - make_interval(secs =>
          least(:cooldown_max_s, :cooldown_s * power(2, least(auto_reruns, 30))))
), chosen AS (
    SELECT deliveries.id FROM deliveries JOIN cooled USING (id)
    WHERE status = 'failed' AND turn <= :limit ORDER BY turn LIMIT :limit
    FOR UPDATE OF deliveries SKIP LOCKED
), {PUT_BACK}""")  # noqa: S608  # put together from constants

PRUNE = text("""
DELETE FROM deliveries WHERE id = ANY(ARRAY(
    SELECT id FROM deliveries
    WHERE status IN ('done', 'discarded') AND finished_at < now() - make_interval(secs => :age)
    LIMIT :limit))
""")
