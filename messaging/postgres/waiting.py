"""Deliveries that are put aside, so that no message reaches their handler, and are woken later.

A waiting delivery uses up no attempt. Workers claim pending deliveries only, also workers of older releases.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from sqlalchemy import Engine, text

from messaging.delivery import Delivery, Status, Waits
from messaging.postgres.states import is_in
from messaging.postgres.transaction import Transaction

#: The caller has locked the row.
HOLD = f"""
UPDATE deliveries SET status = 'waiting', waits_for = %(why)s, limit_key = %(key)s,
    due_at = coalesce(%(until)s, clock_timestamp() + make_interval(secs => %(wait_s)s), due_at)
WHERE id = %(id)s AND {is_in(Status.PENDING)}"""

PUT_ASIDE = text("""
WITH chosen AS (
    SELECT id FROM deliveries
    WHERE status = 'pending' AND (:everything OR handler = ANY(:handlers) OR event_type = ANY(:events))
    LIMIT :limit FOR UPDATE SKIP LOCKED
)
UPDATE deliveries SET status = 'waiting', waits_for = :why WHERE id = ANY(ARRAY(SELECT id FROM chosen))
RETURNING id::text
""")

#: By their ids alone, as far as no worker is running them.
PUT_THESE_ASIDE = text("""
WITH locked AS (
    SELECT id, status FROM deliveries WHERE id = ANY(CAST(:ids AS uuid[])) FOR UPDATE SKIP LOCKED
)
UPDATE deliveries SET status = 'waiting', waits_for = :why
WHERE id = ANY(ARRAY(SELECT id FROM locked WHERE status = 'pending')) RETURNING id::text
""")

#: Seconds that are added to a message's delay: it must not arrive too soon where the servers' clocks differ.
MARGIN_S = 0.5

#: A time that everything is due within.
FOR_EVER_S = 1e9

#: What waits for what: one step of the index for each combination, however many rows wait.
QUEUES = text("""
WITH RECURSIVE queues AS (
    (SELECT waits_for, handler, event_type FROM deliveries WHERE status = 'waiting' ORDER BY 1, 2, 3 LIMIT 1)
    UNION ALL
    SELECT following.* FROM queues, LATERAL (
        SELECT d.waits_for, d.handler, d.event_type FROM deliveries d
        WHERE d.status = 'waiting' AND (d.waits_for, d.handler, d.event_type)
            > (queues.waits_for, queues.handler, queues.event_type)
        ORDER BY 1, 2, 3 LIMIT 1
    ) following
)
SELECT waits_for, handler, event_type FROM queues
""")

#: `before_s`: only those whose time comes within so many seconds. What they wait for is in a subquery, so
#: that the index of that one wait is not used: all that wait for it would be read and sorted.
WAKE = text("""
WITH chosen AS (
    SELECT id, due_at FROM deliveries
    WHERE status = 'waiting' AND waits_for = (SELECT CAST(:why AS text)) AND handler = :handler
      AND event_type = :event_type
      AND due_at <= now() + make_interval(secs => CAST(:before_s AS double precision))
    ORDER BY due_at LIMIT :limit FOR UPDATE SKIP LOCKED
)
UPDATE deliveries SET
    status = 'pending', grace_s = :grace_s,
    due_at = CASE WHEN :early THEN greatest(deliveries.due_at, now()) ELSE now() END
             + make_interval(secs => :grace_s)
FROM chosen WHERE deliveries.id = chosen.id AND deliveries.id = ANY(ARRAY(SELECT id FROM chosen))
RETURNING deliveries.id::text, event_type, payload, handler, correlation_id, causation_id, attempts, reruns,
          traceparent, greatest(0, extract(epoch FROM chosen.due_at - now()))::float
""")


@dataclass(frozen=True)
class Wait:
    """Why a delivery must wait, and until when, if that is known."""

    why: Waits
    until: datetime | None = None
    wait_s: float | None = None  # the same in seconds from now
    key: str | None = None  # whose place it waits for


@dataclass(frozen=True)
class Queue:
    """The deliveries that wait for the same thing."""

    why: str  # a `Waits`, or what another release calls it
    handler: str
    event_type: str


def hold(transaction: Transaction, delivery_id: str, wait: Wait) -> None:
    """Put aside a delivery whose row the caller has locked, and commit."""
    transaction.write(HOLD, {"id": delivery_id, **vars(wait)})
    transaction.commit()


@dataclass(frozen=True)
class Waiting:
    """The waiting deliveries of one database."""

    engine: Engine
    grace_s: float  # seconds before the relay sends another message for a delivery that was woken

    def put_aside(
        self,
        why: Waits,
        limit: int,
        *,
        handlers: Sequence[str] = (),
        events: Sequence[str] = (),
        everything: bool = False,
    ) -> list[str]:
        """Put aside pending deliveries that no worker is running; return their ids."""
        facts = {
            "why": why,
            "limit": limit,
            "handlers": list(handlers),
            "events": list(events),
            "everything": everything,
        }
        with self.engine.begin() as connection:
            return list(connection.execute(PUT_ASIDE, facts).scalars())

    def put_these_aside(self, why: Waits, ids: Sequence[str]) -> list[str]:
        """Put aside those of these deliveries that are pending and not running; return their ids."""
        with self.engine.begin() as connection:
            return list(connection.execute(PUT_THESE_ASIDE, {"why": why, "ids": list(ids)}).scalars())

    def queues(self) -> list[Queue]:
        """Return what waits, and for what."""
        with self.engine.connect() as connection:
            return [Queue(*row) for row in connection.execute(QUEUES)]

    def wake(self, queue: Queue, limit: int, within_s: float | None = None) -> list[Delivery]:
        """Set the first of them back to pending, and return them for sending.

        `within_s`: only those whose time comes within so many seconds, to be sent with that delay.
        """
        facts = {
            **vars(queue),
            "limit": limit,
            "grace_s": self.grace_s,
            "early": within_s is not None,
            "before_s": FOR_EVER_S if within_s is None else within_s,
        }
        with self.engine.begin() as connection:
            rows = connection.execute(WAKE, facts).all()
        if within_s is None:
            return [Delivery.to_send(row[:-1]) for row in rows]
        return [replace(Delivery.to_send(row), wait_s=wait_s and wait_s + MARGIN_S) for *row, wait_s in rows]
