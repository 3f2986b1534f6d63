"""The outbox: each event becomes one row per handler, in the transaction that raised it.

Workers claim deliveries and record their outcome in attempts.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Engine, text

from messaging import tracing
from messaging.delivery import Delivery, Failure, Status, new_id
from messaging.errors import MessagingError
from messaging.messages import Event, to_dict
from messaging.postgres.announcements import INSERT_ANNOUNCEMENT
from messaging.postgres.attempts import NO_MORE, Attempt
from messaging.postgres.audit import COUNT, NOTE, Entry
from messaging.postgres.breakers import NOT_OPEN
from messaging.postgres.effects import Effects
from messaging.postgres.filters import DeliveryFilter
from messaging.postgres.order import INSERT_IN_ORDER, lane_of, lock_lanes
from messaging.postgres.pauses import NOT_PAUSED
from messaging.postgres.states import is_in
from messaging.postgres.transaction import Statement, Transaction
from messaging.unit_of_work import Raised
from messaging.wire.validation import from_dict

INSERT_DELIVERY = Statement(
    """
INSERT INTO deliveries
    (id, event_id, event_type, payload, handler, due_at, grace_s, correlation_id, causation_id, traceparent)
VALUES ($1, $2, $3, $4, $5, now() + make_interval(secs => $6), $6, $7, $8, $9)""",
    *("uuid", "uuid", "text", "jsonb", "text", "double precision", "text", "text", "text"),
)

#: The actor of scheduled re-runs in `actions.actor`.
SCHEDULE = "schedule"

#: Any constant will do; it keeps two schedulers from counting the same running re-runs.
SCHEDULER_LOCK = 4_177_012

TAKE_DUE = text("""
WITH due AS (
    SELECT id FROM deliveries
    WHERE status = 'pending' AND due_at <= now()
      AND due_at > coalesce(CAST(:since AS timestamptz), '-infinity')
    ORDER BY due_at LIMIT :limit FOR UPDATE SKIP LOCKED
)
UPDATE deliveries SET
    grace_s = least(grace_s * 2, :grace_max_s),
    due_at = now() + make_interval(secs => least(grace_s * 2, :grace_max_s))
FROM due WHERE deliveries.id = due.id
RETURNING deliveries.id::text, event_type, payload, handler, correlation_id, causation_id, attempts, reruns,
          traceparent
""")

#: Sets the rows of `chosen` back to pending and returns what `Delivery.to_send` reads.
PUT_BACK = f"""
back AS (
    UPDATE deliveries SET
        status = CASE WHEN :aside THEN 'waiting' ELSE 'pending' END,
        waits_for = CASE WHEN :aside THEN 'turn' END,
        finished_at = NULL, attempts = 0, crashes = 0, reruns = reruns + 1, failure_group = NULL,
        auto_reruns = CASE WHEN :automatic THEN auto_reruns + 1 ELSE 0 END,
        grace_s = :grace_s, due_at = now() + make_interval(secs => :grace_s)
    WHERE id = ANY(ARRAY(SELECT id FROM chosen)) AND {is_in(Status.FAILED)}
    RETURNING deliveries.*
), noted AS (
    INSERT INTO actions (delivery_id, action, actor) SELECT id, 'rerun', :actor FROM back
)
SELECT id::text, event_type, payload, handler, correlation_id, causation_id, attempts, reruns, traceparent
FROM back
"""

#: When an action on many began. Later failures are left alone, and ages are those of that time.
BEGUN = "coalesce(:before, now())"

#: The rows that an operator selects; the filter's conditions are filled in.
CHOSEN = f"""
chosen AS (
    SELECT id FROM deliveries WHERE status = 'failed' AND finished_at <= {BEGUN}{{filter}}
    ORDER BY finished_at LIMIT :limit FOR UPDATE SKIP LOCKED
)"""

ONE_SCHEDULER = text("SELECT pg_try_advisory_xact_lock(:lock)")

#: What the schedule may re-run, and since when. Checked when a row is found, and again once it is locked: an
#: operator may have re-run it in between, and it may have failed again.
MAY_RERUN = f"{NOT_PAUSED} AND {NOT_OPEN} AND auto_reruns < :rerun_max"
HAS_COOLED = """
status = 'failed' AND crashes = 0  -- what kills its workers waits for an operator
AND finished_at < now() - make_interval(secs =>
    least(:cooldown_max_s, :cooldown_s * power(2, least({reruns}, 30))))
"""

#: One step of the index for each handler, event and number of re-runs, then its oldest failures: however many
#: have failed, only what may be re-run is read. Rows are taken by their ids alone: with a condition on the
#: state, the planner may read all that have failed.
RERUN_COOLED = text(f"""
WITH RECURSIVE kinds AS (
    (SELECT handler, event_type, auto_reruns FROM deliveries WHERE status = 'failed' AND crashes = 0
     ORDER BY 1, 2, 3 LIMIT 1)
    UNION ALL
    SELECT following.* FROM kinds, LATERAL (
        SELECT d.handler, d.event_type, d.auto_reruns FROM deliveries d
        WHERE d.status = 'failed' AND crashes = 0 AND (d.handler, d.event_type, d.auto_reruns)
            > (kinds.handler, kinds.event_type, kinds.auto_reruns)
        ORDER BY 1, 2, 3 LIMIT 1
    ) following
), under_way AS (
    SELECT handler, count(*) AS count FROM deliveries
    WHERE status IN ('pending', 'waiting') AND auto_reruns > 0 GROUP BY handler
), cooled AS (
    SELECT oldest.id, coalesce(under_way.count, 0)
                      + row_number() OVER (PARTITION BY handler ORDER BY oldest.finished_at) AS turn
    FROM (SELECT * FROM kinds AS deliveries WHERE {MAY_RERUN}) kinds CROSS JOIN LATERAL (
        SELECT id, finished_at FROM deliveries
        WHERE handler = kinds.handler AND event_type = kinds.event_type AND auto_reruns = kinds.auto_reruns
          AND {HAS_COOLED.format(reruns="kinds.auto_reruns")}
        ORDER BY finished_at LIMIT :limit
    ) oldest LEFT JOIN under_way USING (handler)
), locked AS (
    SELECT * FROM deliveries WHERE id = ANY(ARRAY(
        SELECT id FROM cooled WHERE turn <= :limit ORDER BY turn LIMIT :limit))
    FOR UPDATE SKIP LOCKED
), chosen AS (
    SELECT id FROM locked AS deliveries WHERE {MAY_RERUN} AND {HAS_COOLED.format(reruns="auto_reruns")}
), {PUT_BACK}""")

DISCARD = f"""
gone AS (
    UPDATE deliveries SET status = 'discarded', finished_at = now(), reason = :reason
    WHERE id = ANY(ARRAY(SELECT id FROM chosen)) AND {is_in(Status.FAILED)} RETURNING id
)
INSERT INTO actions (delivery_id, action, actor, reason)
SELECT id, 'discard', :actor, :reason FROM gone RETURNING delivery_id::text AS id
"""

REPLACE = text("""
WITH copy AS (
    INSERT INTO deliveries (id, event_id, event_type, payload, handler, due_at, grace_s,
                            correlation_id, causation_id, edited_from, traceparent, lane, position)
    SELECT :id, :event_id, :event_type, :payload, :handler, now() + make_interval(secs => :grace_s), :grace_s,
           :correlation_id, :causation_id, id, :traceparent, CAST(:lane AS text),
           CASE WHEN CAST(:lane AS text) IS NOT NULL
               THEN coalesce(position, nextval('deliveries_position')) END
    FROM deliveries WHERE id = :old
), original AS (
    UPDATE deliveries SET status = 'discarded', finished_at = now(), reason = :reason WHERE id = :old
)
INSERT INTO actions (delivery_id, action, actor, reason) VALUES (:old, 'edit', :actor, :reason)
""")

#: By `ctid`, since the rows are locked; concurrent prunings take different rows.
PRUNE = text("""
DELETE FROM deliveries WHERE ctid = ANY(ARRAY(
    SELECT ctid FROM deliveries
    WHERE status IN ('done', 'discarded') AND finished_at < now() - make_interval(secs => :age)
    ORDER BY finished_at LIMIT :limit FOR UPDATE SKIP LOCKED))
""")

PRUNE_OPEN_ATTEMPTS = text("""
DELETE FROM open_attempts WHERE ctid = ANY(ARRAY(
    SELECT ctid FROM open_attempts
    WHERE NOT EXISTS (SELECT FROM deliveries WHERE id = delivery_id AND finished_at IS NULL AND reruns = run)
    LIMIT :limit FOR UPDATE SKIP LOCKED))
""")


class NotFailed(MessagingError):
    """Only a failed delivery can be re-run, discarded or corrected."""


@dataclass(frozen=True)
class Outbox:
    """The deliveries of one database. Only failed ones can be re-run, discarded or edited."""

    engine: Engine
    handlers_of: Callable[[Event], list[str]] = lambda _event: []  # by name
    grace_s: float = 15.0  # seconds before the relay sends another message
    announced: bool = False  # whether events are published to other apps
    in_order_by: Mapping[str, str] = field(default_factory=dict)  # handler, by any name → field of its event
    names_of: Callable[[str], Sequence[str]] = lambda handler: (handler,)  # its own and its older ones

    def write(
        self,
        transaction: Transaction,
        raised: list[Raised],
        correlation_id: str,
        causation_id: str,
        effects: Effects | None = None,
    ) -> list[Delivery]:
        """Write one row per event and handler, and return the deliveries to send after the commit."""
        deliveries, trace = [], tracing.current()
        lock_lanes(transaction, self.in_order_by, self.handlers_of, self.names_of, raised)
        for event, key in ((one.event, one.key) for one in raised):
            event_id, kind, values = new_id(), type(event).__name__, to_dict(event)
            payload, causes = json.dumps(values), (correlation_id, causation_id)
            if effects is not None:
                effects.events.append((event_id, kind))
            if self.announced:
                transaction.write(INSERT_ANNOUNCEMENT, (event_id, kind, payload, *causes, key, trace))
            for handler in self.handlers_of(event):
                delivery = Delivery(new_id(), kind, values, handler, *causes, event=event, traceparent=trace)
                row = (delivery.id, event_id, kind, payload, handler, self.grace_s, *causes, trace)
                lane = lane_of(self.in_order_by.get(handler), event)
                if lane is None:
                    transaction.write(INSERT_DELIVERY, row)
                else:
                    transaction.write(INSERT_IN_ORDER, (*row, lane))
                deliveries.append(delivery)
        return deliveries

    def raise_by_hand(self, event: Event) -> list[Delivery]:
        """Write the deliveries of an event raised by hand, and return them for sending."""
        with Transaction(self.engine) as transaction:
            deliveries = self.write(transaction, [Raised(event)], new_id(), new_id())
            transaction.commit()
        return deliveries

    def give_up(
        self, delivery_id: str, worker: str, error: BaseException, as_read: Delivery | None = None
    ) -> Status | None:
        """Fail a pending delivery that has no handler; None if it is not pending.

        `as_read` restricts this to the run and the attempt that the caller has read.
        """
        attempt = Attempt(self.engine, delivery_id, worker, delivery=as_read)
        attempts = as_read.attempts if as_read else None
        with Transaction(self.engine) as transaction:
            failure = Failure.of(worker, error)
            status = attempt.count_failure(transaction, failure, NO_MORE, attempts=attempts)
            transaction.commit()
        return status

    def take_due(self, limit: int, grace_max_s: float, since: datetime | None = None) -> list[Delivery]:
        """Take pending deliveries whose message is overdue, and double the grace until their next turn.

        Locked rows are skipped, so any number of relays can share the work. None is taken that was due before
        `since`.
        """
        facts = {"limit": limit, "grace_max_s": grace_max_s, "since": since}
        with self.engine.begin() as connection:
            rows = connection.execute(TAKE_DUE, facts).all()
        return [Delivery.to_send(row) for row in rows]

    def clock(self) -> datetime:
        """Return the database's time, at which an operation begins; it leaves later failures alone."""
        with self.engine.connect() as connection:
            now: datetime = connection.execute(text("SELECT clock_timestamp()")).scalar_one()
        return now

    def rerun(
        self,
        chosen: DeliveryFilter,
        actor: str,
        limit: int,
        before: datetime | None = None,
        *,
        aside: bool = False,
        entry: int | None = None,
    ) -> list[Delivery]:
        """Set failed deliveries back to pending, oldest failures first, and return them for sending.

        Args:
            chosen: the filter.
            actor: who re-runs, for the history.
            limit: at most this many.
            before: only those that failed before this time, so that none is re-run twice.
            aside: have them wait instead: the relay sends them as fast as workers take messages.
            entry: of the audit, which counts them.
        """
        query = text(f"WITH {CHOSEN.format(filter=chosen.sql_at(BEGUN))}, {PUT_BACK}")
        facts = {"limit": limit, "before": before, "actor": actor, "automatic": False, "aside": aside}
        with self.engine.begin() as connection:
            rows = connection.execute(query, {**chosen.facts, **facts, "grace_s": self.grace_s}).all()
            if entry is not None:
                connection.execute(COUNT, {"id": entry, "count": len(rows)})
        return [Delivery.to_send(row) for row in rows]

    def rerun_cooled(
        self, limit: int, rerun_max: int, cooldown_s: float, cooldown_max_s: float
    ) -> list[Delivery]:
        """Set failed deliveries whose cool-down is over back to pending; it doubles with every re-run.

        No handler has more than `limit` such re-runs in progress, and handlers with the fewest come first,
        so one that always fails does not hold up the others. Returns the deliveries to send; none while
        another scheduler is running.
        """
        facts = {
            "limit": limit,
            "rerun_max": rerun_max,
            "cooldown_s": cooldown_s,
            "cooldown_max_s": cooldown_max_s,
            "grace_s": self.grace_s,
            "automatic": True,
            "aside": False,
            "actor": SCHEDULE,
        }
        with self.engine.begin() as connection:
            if not connection.execute(ONE_SCHEDULER, {"lock": SCHEDULER_LOCK}).scalar_one():
                return []
            return [Delivery.to_send(row) for row in connection.execute(RERUN_COOLED, facts)]

    def discard(
        self, chosen: DeliveryFilter, actor: str, limit: int, reason: str, before: datetime | None = None
    ) -> list[str]:
        """Discard failed deliveries for good, with the reason, oldest failures first; return their ids.

        `before`: only those that failed before this time, when somebody looked at them.
        """
        query = text(f"WITH {CHOSEN.format(filter=chosen.sql_at(BEGUN))}, {DISCARD}")
        facts = {"before": before, "limit": limit, "reason": reason, "actor": actor}
        with self.engine.begin() as connection:
            gone = [row.id for row in connection.execute(query, {**chosen.facts, **facts})]
            connection.execute(NOTE, Entry(actor, "discard", str(chosen), reason, len(gone), "done").facts)
        return gone

    def edit(self, delivery_id: str, kind: type[Event], changes: Mapping[str, Any], actor: str) -> Delivery:
        """Replace a failed delivery with a corrected copy, which records its original.

        Returns the copy, to be sent, with the corrected event.

        Raises:
            NotFailed: it has not failed, or no delivery has this id.
            InvalidMessage: a changed field breaks a rule of the event.
        """
        with self.engine.begin() as connection:
            old = _lock_failed(connection, delivery_id)
            # Fields that an older release stored and this one lacks are left out.
            known = {one.name for one in fields(kind)}
            kept = {name: value for name, value in old.payload.items() if name in known}
            event = from_dict(kind, {**kept, **changes})
            copy = replace(old, id=new_id(), payload=to_dict(event), event=event)
            edited = ", ".join(f"{name}={value!r}" for name, value in changes.items())
            facts = {
                "old": delivery_id,
                "event_id": new_id(),
                "grace_s": self.grace_s,
                "actor": actor,
                "payload": json.dumps(copy.payload),
                "lane": lane_of(self.in_order_by.get(copy.handler), event),
                "reason": f"replaced by {copy.id}, in which {edited}",
            }
            connection.execute(REPLACE, {**vars(copy), **facts})
            entry = Entry(actor, "edit", delivery_id, f"{edited}, as {copy.id}", 1, "done")
            connection.execute(NOTE, entry.facts)
        return copy

    def prune(self, retention_s: float, limit: int = 1000) -> int:
        """Delete deliveries that ended this many seconds ago, at most `limit`; return their number."""
        with self.engine.begin() as connection:
            return connection.execute(PRUNE, {"age": retention_s, "limit": limit}).rowcount

    def prune_open_attempts(self, limit: int) -> int:
        """Delete open attempts of runs that are over, at most `limit`; return their number."""
        with self.engine.begin() as connection:
            return connection.execute(PRUNE_OPEN_ATTEMPTS, {"limit": limit}).rowcount


def _lock_failed(connection: Connection, delivery_id: str) -> Delivery:
    query = text(
        "SELECT id::text, event_type, payload, handler, correlation_id, causation_id, status, traceparent"
        " FROM deliveries WHERE id = CAST(:id AS uuid) FOR UPDATE"
    )
    row = connection.execute(query, {"id": delivery_id}).one_or_none()
    if row is None:
        raise NotFailed(f"There is no delivery {delivery_id}")
    if row.status != Status.FAILED:
        raise NotFailed(f"Delivery {delivery_id} is {row.status}; only a failed one can be corrected")
    return replace(Delivery(*row[:6]), traceparent=row.traceparent)
