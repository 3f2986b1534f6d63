"""Re-runs of many deliveries as rows: whoever goes on with one finds where it stands. (docs/adr/023)

Each step is one transaction that holds the lock of the re-run's row: it sets some deliveries back to pending
and writes the progress into the audit. So the entry is exact after a crash, and any number of processes can
take steps.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Engine, text

from messaging.delivery import Delivery, Status
from messaging.errors import MessagingError
from messaging.postgres.audit import BEGIN, GO_ON, UNDER_WAY, Entry
from messaging.postgres.filters import DeliveryFilter
from messaging.postgres.outbox import BEGUN, CHOSEN, PUT_BACK
from messaging.postgres.states import is_in

#: Most deliveries in one step.
STEP = 200

#: Failed deliveries that one statement looks at, in the order of their failures, and seconds after which a
#: step looks at no more of them: a step is short, however few of those that failed match its filter.
WINDOW = 20_000
LOOK_FOR_S = 1.0

#: Seconds whose deliveries one step of a re-run with a rate may make up for.
LONGEST_PACE_S = 10.0

#: Where the window ends that begins at `reached`; nothing if it is the last one.
WINDOW_END = text("""
SELECT finished_at FROM deliveries
WHERE status = 'failed' AND finished_at > coalesce(CAST(:reached AS timestamptz), '-infinity')
  AND finished_at <= :before
ORDER BY finished_at OFFSET :window LIMIT 1
""")

IN_WINDOW = """
AND finished_at >= coalesce(CAST(:reached AS timestamptz), '-infinity')
AND finished_at < coalesce(CAST(:ends AS timestamptz), 'infinity')"""

COUNT = """
SELECT count(*), coalesce(:before, clock_timestamp()) FROM deliveries
WHERE status = 'failed' AND finished_at <= coalesce(CAST(:before AS timestamptz), 'infinity'){filter}"""

START = text("""
INSERT INTO bulk_reruns (audit_id, filter, before, remaining, expected, rate, canary, canary_until)
VALUES (:id, :filter, :before, :remaining, :expected, :rate, CAST(:canary AS uuid[]),
        CASE WHEN :canary_s > 0 THEN clock_timestamp() + make_interval(secs => :canary_s) END)
""")

#: Some of the failed ones, at random.
SAMPLE = f"""
chosen AS (
    SELECT id FROM deliveries WHERE {is_in(Status.FAILED)} AND id = ANY(ARRAY(
        SELECT id FROM deliveries WHERE status = 'failed' AND finished_at <= :before{{filter}}
        ORDER BY random() LIMIT :limit))
    FOR UPDATE SKIP LOCKED
)"""

#: The audit's count may be older than the lock.
COLUMNS = """
audit_id AS id, at, actor, expected - remaining AS count, filter, before, reached, remaining,
expected, rate, canary::text[], canary_until,
extract(epoch FROM clock_timestamp() - paced_at)::float AS paced_s,
coalesce(canary_until < clock_timestamp(), false) AS is_late"""

TAKE = text(f"""
SELECT {COLUMNS} FROM bulk_reruns JOIN audit ON audit.id = audit_id WHERE audit_id = :id
FOR UPDATE OF bulk_reruns SKIP LOCKED
""")

LOCK = text("SELECT FROM bulk_reruns WHERE audit_id = :id FOR UPDATE")

UNDER_WAY_NOW = text(f"""
SELECT {COLUMNS} FROM bulk_reruns JOIN audit ON audit.id = audit_id ORDER BY audit_id
""")

ADVANCE = text("""
UPDATE bulk_reruns SET remaining = remaining - :count, canary = NULL, canary_until = NULL, reached = :reached,
    paced_at = CASE WHEN :count > 0 OR canary IS NOT NULL THEN clock_timestamp() ELSE paced_at END
WHERE audit_id = :id
""")

END = text("DELETE FROM bulk_reruns WHERE audit_id = :id")

STATES = text(
    "SELECT status, count(*) AS number FROM deliveries WHERE id = ANY(CAST(:ids AS uuid[])) GROUP BY 1"
)

FOUND = text("SELECT count AS requeued, outcome FROM audit WHERE id = :id AND action = 'rerun'")


class WrongRerun(MessagingError):
    """It cannot be re-run now."""


class NotUnderWay(MessagingError):
    """No re-run with this number is under way."""


@dataclass(frozen=True)
class BulkRerun:
    """One that is under way."""

    id: int  # of its entry in the audit
    at: datetime
    actor: str
    count: int  # deliveries that were requeued
    filter: dict[str, Any]
    before: datetime  # later failures are left alone
    reached: datetime | None  # earlier ones have been looked at
    remaining: int
    expected: int
    rate: float | None  # per second
    canary: Sequence[str] | None  # deliveries that are tried first
    canary_until: datetime | None
    paced_s: float  # seconds since the last step of a re-run with a rate
    is_late: bool  # its canary has had its time

    @property
    def chosen(self) -> DeliveryFilter:
        """Return its filter; ValueError if a newer release has written it."""
        return DeliveryFilter.from_stored(self.filter)

    def wanted(self, room: int) -> int:
        """Return how many deliveries its next step may take."""
        paced_s = 1.0 if self.canary else min(self.paced_s, LONGEST_PACE_S)
        paced = STEP if self.rate is None else int(self.rate * paced_s)
        return max(0, min(STEP, room, paced, self.remaining))


@dataclass(frozen=True)
class Progress:
    """Where a re-run stands."""

    id: int
    count: int
    outcome: str
    deliveries: list[Delivery] = field(default_factory=list)  # to send, after one step

    @property
    def is_under_way(self) -> bool:
        """Return whether it goes on."""
        return self.outcome == UNDER_WAY


@dataclass(frozen=True)
class BulkReruns:
    """The re-runs of one database."""

    engine: Engine
    grace_s: float

    def start(
        self,
        chosen: DeliveryFilter,
        actor: str,
        limit: int | None = None,
        *,
        canary: int = 0,
        canary_s: float = 60.0,
        rate: float | None = None,
        before: datetime | None = None,
    ) -> Progress:
        """Begin one; with `canary`, set so many at random back to pending, to be sent by the caller.

        Args:
            chosen: the filter.
            actor: who re-runs, for the history.
            limit: at most so many; None: all that have failed until now.
            canary: go on only if so many, chosen at random, succeed first.
            canary_s: seconds that they have.
            rate: at most so many per second after that.
            before: leave those alone that failed later; None: now.

        Raises:
            WrongRerun: another action holds some of those that are to be tried first.
        """
        with self.engine.begin() as connection:
            query = text(COUNT.format(filter=chosen.sql_at(BEGUN)))
            failed, before = connection.execute(query, {**chosen.facts, "before": before}).one()
            expected = failed if limit is None else min(failed, limit)
            tried: list[Delivery] = []
            if first := min(canary, expected):
                tried = self._requeue(connection, SAMPLE, chosen, f"{actor} (canary)", first, before)
                if held := first - len(tried):
                    raise WrongRerun(
                        f"{held:,} of the {first:,} that are to be tried first are being changed just now:"
                        " try again"
                    )
            entry = Entry(actor, "rerun", str(chosen), None, len(tried), UNDER_WAY)
            number: int = connection.execute(BEGIN, entry.facts).scalar_one()
            facts = {
                "id": number, "filter": json.dumps(chosen.stored), "before": before,
                "remaining": expected - len(tried), "expected": expected, "rate": rate,
                "canary": [one.id for one in tried] or None, "canary_s": canary_s if tried else 0.0,
            }  # fmt: skip
            connection.execute(START, facts)
        return Progress(number, len(tried), UNDER_WAY, tried)

    def under_way(self) -> list[BulkRerun]:
        """Return those that have not ended, the oldest first."""
        with self.engine.connect() as connection:
            return [BulkRerun(**row._mapping) for row in connection.execute(UNDER_WAY_NOW)]

    def step(self, number: int, room: int) -> Progress:
        """Go on with one, with at most `room` deliveries, which the caller sends.

        Raises:
            NotUnderWay: no re-run has this number.
            ValueError: a newer release has written its filter.
        """
        with self.engine.begin() as connection:
            row = connection.execute(TAKE, {"id": number}).one_or_none()
            if row is None:  # another process takes a step, or it has ended
                return _found(connection, number)
            rerun = BulkRerun(**row._mapping)
            if rerun.canary and (judged := _judge(connection, rerun)):
                return judged
            wanted = rerun.wanted(room)
            deliveries, reached, is_last = self._next(connection, rerun, wanted)
            moved = len(deliveries)
            connection.execute(ADVANCE, {"id": number, "count": moved, "reached": reached})
            if is_last:
                connection.execute(END, {"id": number})
            outcome = "done" if is_last else UNDER_WAY
            connection.execute(GO_ON, {"id": number, "count": rerun.count + moved, "outcome": outcome})
        return Progress(number, rerun.count + moved, outcome, deliveries)

    def stop(self, number: int, actor: str) -> Progress:
        """End one before its time: what was requeued runs, the rest stays failed.

        Raises:
            NotUnderWay: it has ended, or no re-run has this number.
        """
        with self.engine.begin() as connection:
            held = connection.execute(LOCK, {"id": number}).one_or_none()
            found = _found(connection, number)
            if held is None:
                raise NotUnderWay(f"Re-run {number} has ended: {found.outcome}, {found.count:,} requeued")
            connection.execute(END, {"id": number})
            outcome = f"stopped by {actor}"
            connection.execute(GO_ON, {"id": number, "count": found.count, "outcome": outcome})
        return Progress(number, found.count, outcome)

    def _next(
        self, connection: Connection, rerun: BulkRerun, wanted: int
    ) -> tuple[list[Delivery], datetime | None, bool]:
        """Requeue the next ones; return them, where the next step begins, and whether none is left for it."""
        found: list[Delivery] = []
        chosen, reached, until = rerun.chosen, rerun.reached, time.monotonic() + LOOK_FOR_S
        while len(found) < wanted:
            window = {"reached": reached, "before": rerun.before, "window": WINDOW}
            ends = connection.execute(WINDOW_END, window).scalar_one_or_none()
            window = {"reached": reached, "ends": ends}
            limit = wanted - len(found)
            found += self._requeue(connection, CHOSEN, chosen, rerun.actor, limit, rerun.before, window)
            if len(found) == wanted:
                break
            if ends is None:
                return found, reached, True
            reached = ends
            if time.monotonic() > until:
                break
        return found, reached, len(found) >= rerun.remaining

    def _requeue(
        self,
        connection: Connection,
        choice: str,
        chosen: DeliveryFilter,
        actor: str,
        limit: int,
        before: datetime,
        window: Mapping[str, Any] | None = None,
    ) -> list[Delivery]:
        filter_ = chosen.sql_at(BEGUN) + (IN_WINDOW if window else "")
        query = text(f"WITH {choice.format(filter=filter_)}, {PUT_BACK}")
        facts = {"limit": limit, "before": before, "actor": actor, "automatic": False, "aside": False}
        given = {**chosen.facts, **facts, **(window or {}), "grace_s": self.grace_s}
        return [Delivery.to_send(row) for row in connection.execute(query, given)]


def _found(connection: Connection, number: int) -> Progress:
    row = connection.execute(FOUND, {"id": number}).one_or_none()
    if row is None:
        raise NotUnderWay(f"No re-run has the number {number}")
    return Progress(number, row.requeued or 0, row.outcome or UNDER_WAY)


def _judge(connection: Connection, rerun: BulkRerun) -> Progress | None:
    """Return where it stands if its canary has not succeeded yet, or will not; None if it has."""
    rows = {row.status: row.number for row in connection.execute(STATES, {"ids": rerun.canary})}
    states = {status: rows[status] for status in Status if status in rows}
    failed = states.keys() & {Status.FAILED, Status.DISCARDED}
    if states.keys() <= {Status.DONE}:
        return None
    if not failed and not rerun.is_late:
        return Progress(rerun.id, rerun.count, UNDER_WAY)
    shown = ", ".join(f"{count:,} {status}" for status, count in states.items())
    outcome = f"stopped: not all that were tried first succeeded{'' if failed else ' in time'} ({shown})"
    connection.execute(END, {"id": rerun.id})
    connection.execute(GO_ON, {"id": rerun.id, "count": rerun.count, "outcome": outcome})
    return Progress(rerun.id, rerun.count, outcome)
