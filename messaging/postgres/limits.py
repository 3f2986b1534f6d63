"""How many deliveries of a handler, or of one key of its events, may run at once and per time.

A place is an advisory lock of the delivery's transaction: it is free again when that ends, also by its
worker's death. A rate is one row with two times: the next one that nobody has reserved, and the one from
which the next delivery may begin. Who finds no free time reserves one, and is woken for it. Its message may
come too soon, twice, or late and together with many, so it looks again whether it may begin.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Engine, text

from messaging.delivery import Delivery
from messaging.options import Rate
from messaging.postgres.order import BACK, ROW
from messaging.postgres.transaction import Transaction

#: The filter is called for one place after the other, until one is free.
TAKE_PLACE = """
SELECT place FROM generate_series(1, %(places)s) place
WHERE pg_try_advisory_xact_lock(hashtextextended(%(name)s || ':' || place, 0)) LIMIT 1"""

#: Seconds by which deliveries that were woken may begin closer together: messages do not arrive more exactly.
EARLY_S = 1.0

#: The first statement locks the row. `free_at` is never later than `next_at`.
RESERVE = """
INSERT INTO rates (name, next_at) VALUES (%(name)s, clock_timestamp())
ON CONFLICT (name) DO UPDATE SET name = excluded.name;
WITH held AS (
    SELECT *, clock_timestamp() AS at FROM rates WHERE name = %(name)s
), judged AS (
    SELECT name, greatest(free_at, at) + make_interval(secs => %(every_s)s) AS free_at, CASE
        WHEN %(was_woken)s THEN coalesce(free_at, at) <= at + make_interval(secs => %(early_s)s)
        ELSE next_at <= at END AS begins
    FROM held
)
UPDATE rates SET
    free_at = CASE WHEN begins THEN judged.free_at ELSE rates.free_at END,
    next_at = CASE WHEN begins THEN greatest(next_at, judged.free_at)
                   ELSE next_at + make_interval(secs => %(every_s)s) END
FROM judged WHERE rates.name = judged.name
RETURNING next_at - make_interval(secs => %(every_s)s), begins"""

#: Only if a place is free; the lock is given up at once.
WAKE_FOR_PLACE = f"""
UPDATE deliveries SET {BACK.format(grace_s="%(grace_s)s")}
WHERE id = (
    SELECT id FROM deliveries
    WHERE status = 'waiting' AND waits_for = 'place' AND handler = ANY(%(names)s) AND limit_key = %(key)s
    ORDER BY due_at LIMIT 1 FOR UPDATE SKIP LOCKED
) AND EXISTS ({TAKE_PLACE}) RETURNING {ROW}"""

PRUNE = text("""
DELETE FROM rates WHERE name = ANY(ARRAY(
    SELECT name FROM rates WHERE next_at < now() - interval '1 hour' LIMIT :limit FOR UPDATE SKIP LOCKED))
""")


def take_place(transaction: Transaction, name: str, places: int) -> bool:
    """Take one of so many places until the end of the transaction; return False if all are taken."""
    return bool(transaction.read(TAKE_PLACE, {"name": name, "places": places}))


def reserve(transaction: Transaction, name: str, rate: Rate) -> datetime | None:
    """Take the next time that nobody has reserved and commit; return it, or None if it is now."""
    return _taken(transaction, name, rate, was_woken=False)


def begin(transaction: Transaction, name: str, rate: Rate) -> datetime | None:
    """Do so for a delivery that was woken for its time: it is now, if no others have begun just before."""
    return _taken(transaction, name, rate, was_woken=True)


def _taken(transaction: Transaction, name: str, rate: Rate, *, was_woken: bool) -> datetime | None:
    facts = {"name": name, "every_s": rate.every_s, "was_woken": was_woken, "early_s": EARLY_S}
    [(at, begins)] = transaction.read(RESERVE, facts)
    transaction.commit()
    return None if begins else at


@dataclass(frozen=True)
class Limits:
    """The limits of one database."""

    engine: Engine
    grace_s: float

    def wake_for_place(self, names: Sequence[str], key: str, place: str, places: int) -> list[Delivery]:
        """Set the first that waits for a place back to pending, if one is free; return it."""
        facts = {"names": list(names), "key": key, "name": place, "places": places, "grace_s": self.grace_s}
        with Transaction(self.engine) as transaction:
            rows = transaction.read(WAKE_FOR_PLACE, facts)
            if rows:
                transaction.commit()
        return [Delivery.to_send(row) for row in rows]

    def prune(self, limit: int) -> int:
        """Delete rates that were not used for an hour, at most `limit`; return their number."""
        with self.engine.begin() as connection:
            return connection.execute(PRUNE, {"limit": limit}).rowcount
