"""Circuit breakers: a handler that keeps failing is stopped, tried again after a pause, and let go on.

The pattern's source: Nygard, "Release It!", 2nd edition, section 5.2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Engine, text

from messaging.options import Breaker
from messaging.postgres.audit import NOTE, Entry
from messaging.postgres.transaction import Transaction

#: For queries of deliveries.
NOT_OPEN = """
NOT EXISTS (SELECT FROM breakers WHERE breakers.handler = deliveries.handler AND until > now())"""

#: Counts a failure. It opens when there are too many in a row, or too large a share of the window, or when a
#: trial failed; each time in a row for twice as long. Successes are counted only as far as they decide it.
FAILED = """
INSERT INTO breakers (handler) VALUES (%(handler)s) ON CONFLICT DO NOTHING;
WITH held AS (
    SELECT *, coalesce(window_at > clock_timestamp() - make_interval(secs => %(window_s)s), false) AS is_fresh
    FROM breakers WHERE handler = %(handler)s FOR UPDATE
), counted AS (
    SELECT handler, failures + 1 AS failures,
           CASE WHEN is_fresh THEN window_failures ELSE 0 END + 1 AS in_window,
           CASE WHEN is_fresh THEN window_at ELSE clock_timestamp() END AS begun, until, opened
    FROM held
), judged AS (
    SELECT *, CASE
        WHEN until IS NULL THEN failures >= %(failures)s OR (
            %(share)s IS NOT NULL AND in_window >= %(at_least)s * %(share)s AND in_window >= %(share)s * (
                in_window + (SELECT count(*) FROM (
                    SELECT FROM deliveries
                    WHERE status = 'done' AND handler = ANY(%(names)s) AND finished_at >= counted.begun
                    LIMIT (SELECT ceil(in_window / %(share)s)::bigint FROM counted)
                ) succeeded)))
        ELSE %(is_trial)s AND until <= clock_timestamp() END AS opens
    FROM counted
)
UPDATE breakers SET
    failures = judged.failures, window_failures = in_window, window_at = begun, last_error = %(error)s,
    opened = judged.opened + opens::integer,
    since = CASE WHEN opens THEN coalesce(since, clock_timestamp()) ELSE since END,
    until = CASE WHEN NOT opens THEN judged.until ELSE clock_timestamp() + make_interval(secs =>
        least(%(pause_max_s)s, %(pause_s)s * power(2, least(judged.opened, 30)))) END
FROM judged WHERE breakers.handler = judged.handler RETURNING breakers.until"""

#: Without a row to change, this locks nothing.
SUCCEEDED = """
UPDATE breakers SET failures = 0 WHERE handler = %(handler)s AND failures > 0 AND until IS NULL"""

CLOSED = "failures = 0, window_failures = 0, opened = 0, since = NULL, until = NULL"

TRIAL_SUCCEEDED = f"UPDATE breakers SET {CLOSED} WHERE handler = ANY(%(names)s)"

#: By an operator.
CLOSE = text(f"UPDATE breakers SET {CLOSED} WHERE handler = ANY(:names) AND until IS NOT NULL")

STOPPED = text("""
SELECT handler, failures, opened, since, until, last_error, until > clock_timestamp() FROM breakers
WHERE until IS NOT NULL ORDER BY handler
""")


@dataclass(frozen=True)
class Stopped:
    """A breaker that is open, or half-open: after its pause, until a trial has succeeded."""

    handler: str
    failures: int  # in a row
    opened: int  # how often, since it was closed
    since: datetime
    until: datetime
    last_error: str
    is_open: bool

    def __str__(self) -> str:
        """Return its state as a sentence without its end."""
        since = self.since.strftime("%Y-%m-%d %H:%M:%SZ")
        then = (
            f"tries again at {self.until.strftime('%H:%M:%SZ')}" if self.is_open else "is being tried again"
        )
        failed = f"failed {self.failures} times in a row"
        return f"{self.handler} {failed}, is stopped since {since} and {then}: {self.last_error}"


@dataclass(frozen=True)
class Breakers:
    """The breakers of one database."""

    engine: Engine

    def stopped(self) -> dict[str, Stopped]:
        """Return the breakers that are not closed, by handler."""
        with self.engine.connect() as connection:
            return {row.handler: Stopped(*row) for row in connection.execute(STOPPED)}

    def close(self, names: Sequence[str], actor: str, reason: str | None) -> bool:
        """Close a handler's breaker, so that all its deliveries go on; return False if it is closed."""
        with self.engine.begin() as connection:
            closed = connection.execute(CLOSE, {"names": list(names)}).rowcount > 0
            if closed:
                entry = Entry(actor, "close", f"breaker of {names[0]}", reason)
                connection.execute(NOTE, entry.facts)
        return closed


def stop_of(stopped: Mapping[str, Stopped], names: Sequence[str]) -> Stopped | None:
    """Return what stops the handler with these names: its breaker opens under its current one."""
    return next((stopped[name] for name in names if name in stopped), None)


def count_failure(
    transaction: Transaction, names: Sequence[str], breaker: Breaker, error: str, *, is_trial: bool
) -> datetime | None:
    """Count a failure of the handler with these names; return until when its breaker is open, if it is."""
    facts = {
        "handler": names[0], "names": list(names), "error": error, "is_trial": is_trial,
        "failures": breaker.failures, "share": breaker.share, "at_least": breaker.at_least,
        "window_s": float(breaker.window_s or 0),
        "pause_s": float(breaker.pause_s or 0), "pause_max_s": float(breaker.pause_max_s or 0),
    }  # fmt: skip
    [(until,)] = transaction.read(FAILED, facts)
    return until  # type: ignore[no-any-return]
