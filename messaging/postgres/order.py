"""Order per handler and key: a delivery waits until the earlier ones are done or discarded. (docs/adr/023)

A lane is the deliveries of one handler whose events have the same value in the field `in_order_by`. Positions
are drawn under a lock of the lane, which is kept until the commit: they rise in the order of the commits, and
whoever sees a position has seen those before it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Engine, text

from messaging.delivery import Delivery, Status
from messaging.messages import Event
from messaging.postgres.states import is_in
from messaging.postgres.transaction import Statement, Transaction
from messaging.texts import storable
from messaging.unit_of_work import Raised

#: Characters of a key; a longer one is shortened to its hash, since index entries are limited.
MAX_LANE = 200

LOCK_LANE = Statement("SELECT pg_advisory_xact_lock(hashtextextended($1, 0))", "text")

INSERT_IN_ORDER = Statement(
    """
INSERT INTO deliveries
    (id, event_id, event_type, payload, handler, due_at, grace_s, correlation_id, causation_id,
     traceparent, lane, position)
VALUES ($1, $2, $3, $4, $5, now() + make_interval(secs => $6), $6, $7, $8,
        $9, $10, nextval('deliveries_position'))""",
    *("uuid", "uuid", "text", "jsonb", "text", "double precision", "text", "text", "text", "text"),
)

#: Lanes that one look of the relay visits; the next look goes on with those behind them.
LANES = 50_000

OPEN = "status IN ('pending', 'waiting', 'failed')"
WAITS = "status = 'waiting' AND waits_for = 'order'"

#: The first delivery of a lane that is neither done nor discarded, under whichever name of its handler: one
#: step of the index for each name.
HEAD = f"""
SELECT {{columns}} FROM {{names}} AS one(name), LATERAL (
    SELECT * FROM deliveries d WHERE d.lane = {{lane}} AND d.handler = one.name AND d.{OPEN}
    ORDER BY d.position LIMIT 1
) first ORDER BY first.position LIMIT 1"""

#: The current names of handlers by older ones; the current name of a handler; all names of one.
RENAMED = "unnest(CAST(:older AS text[]), CAST(:newest AS text[])) AS renamed(older, newest)"
NEWEST = f"coalesce((SELECT newest FROM {RENAMED} WHERE older = {{of}}), {{of}})"
NAMES = f"(SELECT {{newest}} UNION ALL SELECT older FROM {RENAMED} WHERE newest = {{newest}})"

BACK = """
status = 'pending', grace_s = {grace_s}, due_at = now() + make_interval(secs => {grace_s})"""

ROW = """
deliveries.id::text, event_type, payload, handler, correlation_id, causation_id, attempts, reruns,
traceparent"""

#: Two who wake the same one: the second finds it pending.
WAKE_HEAD = Statement(
    f"""
UPDATE deliveries SET {BACK.format(grace_s="$3")}
WHERE id = ({HEAD.format(columns="first.id", names="unnest($2)", lane="$1")})
  AND {is_in(Status.WAITING)} AND waits_for = 'order' RETURNING {ROW}""",
    *("text", "text[]", "double precision"),
)

#: Some steps of the index for each lane in which deliveries wait, however many; with the last of these lanes.
#: Rows are taken by their ids alone: with a condition on the state, the planner may read all that wait.
WAKE_HEADS = text(f"""
WITH RECURSIVE lanes AS (
    (SELECT lane, handler, 1 AS number FROM deliveries
     WHERE {WAITS} AND (lane, handler) > (:lane, :handler) ORDER BY 1, 2 LIMIT 1)
    UNION ALL
    SELECT following.*, number + 1 FROM lanes, LATERAL (
        SELECT d.lane, d.handler FROM deliveries d
        WHERE {WAITS} AND (d.lane, d.handler) > (lanes.lane, lanes.handler) ORDER BY 1, 2 LIMIT 1
    ) following WHERE number < :lanes
), heads AS (
    SELECT head.id FROM (SELECT lane, {NEWEST.format(of="handler")} AS newest FROM lanes) own, LATERAL (
        {HEAD.format(columns="first.*", names=NAMES.format(newest="own.newest"), lane="own.lane")}
    ) head WHERE head.status = 'waiting' AND head.waits_for = 'order' LIMIT :limit
), locked AS (
    SELECT id, status, waits_for FROM deliveries WHERE id = ANY(ARRAY(SELECT id FROM heads))
    FOR UPDATE SKIP LOCKED
), woken AS (
    UPDATE deliveries SET {BACK.format(grace_s=":grace_s")}
    WHERE id = ANY(ARRAY(SELECT id FROM locked WHERE {WAITS})) RETURNING {ROW}
)
SELECT last.lane, last.handler, number, woken.*
FROM (SELECT * FROM lanes ORDER BY number DESC LIMIT 1) last LEFT JOIN woken ON true
""")

#: The lanes in which deliveries wait, with the delivery that blocks each.
BLOCKED = text(f"""
SELECT behind.handler, behind.lane, behind.count, behind.since, head.id::text, head.status, head.waits_for,
       head.attempts, head.last_error
FROM (
    SELECT {NEWEST.format(of="handler")} AS handler, lane, sum(count)::bigint AS count, min(since) AS since
    FROM (
        SELECT handler, lane, count(*) AS count, min(created_at) AS since FROM deliveries
        WHERE status = 'waiting' AND waits_for = 'order' GROUP BY 1, 2
    ) found GROUP BY 1, 2
) behind, LATERAL (
    {HEAD.format(columns="first.*", names=NAMES.format(newest="behind.handler"), lane="behind.lane")}
) head
ORDER BY behind.count DESC, behind.since LIMIT :limit
""")

#: The first of its lane, for each of these deliveries.
BLOCKERS = text(f"""
SELECT own.id::text, own.lane, head.id::text, head.status FROM (
    SELECT id, lane, {NEWEST.format(of="handler")} AS newest FROM deliveries
    WHERE id = ANY(CAST(:ids AS uuid[]))
) own, LATERAL (
    {HEAD.format(columns="first.*", names=NAMES.format(newest="own.newest"), lane="own.lane")}
) head WHERE own.id <> head.id
""")


@dataclass(frozen=True)
class BlockedLane:
    """Deliveries of one handler and key that wait, and the one that they wait for."""

    handler: str  # by its current name
    key: str
    waiting: int
    since: Any  # when the event of the first of them was raised
    blocked_by: str
    status: str
    waits_for: str | None
    attempts: int
    last_error: str | None


@dataclass(frozen=True)
class Blocker:
    """The first delivery of a lane."""

    key: str
    id: str
    status: str


@dataclass
class Lanes:
    """The lanes of one database."""

    engine: Engine
    grace_s: float
    renamed: Mapping[str, str] = field(default_factory=dict)  # current names of handlers by older ones
    #: The lane behind which the relay's next look begins.
    _behind: tuple[str, str] = field(default=("", ""), init=False)

    def wake_head(self, lane: str, names: Sequence[str]) -> list[Delivery]:
        """Set the first delivery of a lane back to pending, if it waits for its turn; return it."""
        with Transaction(self.engine) as transaction:
            rows = transaction.read(WAKE_HEAD, (lane, list(names), self.grace_s))
            if rows:
                transaction.commit()
        return [Delivery.to_send(row) for row in rows]

    def wake_heads(self, limit: int) -> list[Delivery]:
        """Do so in all lanes, `LANES` at a time: the worker that should have done it may have died."""
        lane, handler = self._behind
        facts = {"lane": lane, "handler": handler, "lanes": LANES, "limit": limit, "grace_s": self.grace_s}
        with self.engine.begin() as connection:
            rows = connection.execute(WAKE_HEADS, {**facts, **self._names}).all()
        woken = [Delivery.to_send(row[3:]) for row in rows if row[3] is not None]
        if len(woken) < limit:  # else there may be more among these
            self._behind = (rows[0][0], rows[0][1]) if rows and rows[0][2] == LANES else ("", "")
        return woken

    def blocked(self, limit: int) -> list[BlockedLane]:
        """Return the lanes in which deliveries wait, those with the most first."""
        facts = {"limit": limit, **self._names}
        with self.engine.connect() as connection:
            return [BlockedLane(*row) for row in connection.execute(BLOCKED, facts)]

    def blockers(self, ids: Iterable[str]) -> dict[str, Blocker]:
        """Return what these deliveries wait for, by their ids."""
        facts = {"ids": list(ids), **self._names}
        with self.engine.connect() as connection:
            return {own: Blocker(*rest) for own, *rest in connection.execute(BLOCKERS, facts)}

    @property
    def _names(self) -> dict[str, list[str]]:
        return {"older": list(self.renamed), "newest": list(self.renamed.values())}


def lane_of(field: str | None, event: Event) -> str | None:
    """Return the lane of an event for a handler that is in order by this field; None without a value."""
    value = getattr(event, field) if field else None
    if value is None:
        return None
    key = storable(str(value))
    return key if len(key) <= MAX_LANE else hashlib.sha256(key.encode()).hexdigest()


def lock_lanes(
    transaction: Transaction,
    in_order_by: Mapping[str, str],
    handlers_of: Callable[[Event], list[str]],
    names_of: Callable[[str], Sequence[str]],
    raised: Iterable[Raised],
) -> None:
    """Lock the lanes of all new deliveries until the commit, always in the same order.

    Under all names of a handler: during a deploy, the release before locks the one that it knows.
    """
    if not in_order_by:
        return
    lanes = {
        f"{name}:{lane}"
        for one in raised
        for handler in handlers_of(one.event)
        if (lane := lane_of(in_order_by.get(handler), one.event)) is not None
        for name in names_of(handler)
    }
    for lane in sorted(lanes):
        transaction.write(LOCK_LANE, (lane,))
