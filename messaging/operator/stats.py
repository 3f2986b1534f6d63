"""Counts of deliveries: for an operator's overview, and for the metrics."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Self

from sqlalchemy import Connection, Engine, text

from messaging.project.runtime import Runtime

#: All but done deliveries: read from the partial indexes, however large the table is.
OPEN = """
SELECT status, handler, count(*) FROM deliveries WHERE status = 'pending' GROUP BY 1, 2
UNION ALL
SELECT status, handler, count(*) FROM deliveries WHERE status = 'waiting' GROUP BY 1, 2
UNION ALL
SELECT status, handler, count(*) FROM deliveries WHERE status = 'failed' GROUP BY 1, 2
UNION ALL
SELECT status, handler, count(*) FROM deliveries WHERE status = 'discarded' GROUP BY 1, 2"""

DONE = "SELECT status, handler, count(*) FROM deliveries WHERE status = 'done' GROUP BY 1, 2"

#: Since it became pending, not since its event: it may have failed or waited for hours before. A delivery is
#: due one grace after it was sent. The relay doubles it when it sends it again, so the earlier ones are
#: `grace_s` less the first. At the longest one that is not known any more: it has been pending for long.
OLDEST_PENDING = """
SELECT greatest(0, max(
    CASE WHEN grace_s < :grace_max_s THEN extract(epoch FROM now() - due_at) + 2 * grace_s - :grace_s
         ELSE extract(epoch FROM now() - created_at) END))::float
FROM deliveries WHERE status = 'pending'"""

FAILURES = """
SELECT date_trunc('hour', at) AS hour, count(*) FROM attempts
WHERE at > now() - interval '24 hours' GROUP BY 1 ORDER BY 1"""

DEAD_LETTERS = """
SELECT reason, count(*) FROM dead_letters WHERE replayed_at IS NULL AND discarded_at IS NULL
GROUP BY 1 ORDER BY 1"""

RERUNS = """
SELECT CASE WHEN actor = 'schedule' THEN actor ELSE 'operator' END, count(*) FROM actions
WHERE action = 'rerun' AND at > now() - interval '1 hour' GROUP BY 1 ORDER BY 1"""

WAITING = "SELECT waits_for, count(*) FROM deliveries WHERE status = 'waiting' GROUP BY 1 ORDER BY 1"

WAITS = "SELECT handler, waits_for, count(*) FROM deliveries WHERE status = 'waiting' GROUP BY 1, 2"

FAILED = "SELECT count(*) FROM deliveries WHERE status = 'failed'"

Counts = dict[tuple[str, str], int]


@dataclass(frozen=True)
class Overview:
    """Counts at one moment."""

    deliveries: Counts  # by (state, handler)
    oldest_pending_s: float  # seconds that one has been pending; 0 where nothing is
    failures: dict[datetime, int]  # failed attempts by hour, the last 24 hours
    dead_letters: dict[str, int]  # open ones, by reason
    reruns: dict[str, int]  # of the last hour: by the "schedule", by an "operator"


@dataclass(frozen=True)
class Summary:
    """What an operator looks at first."""

    failed: int
    waiting: dict[str, int]  # by what they wait for
    oldest_pending_s: float

    def __str__(self) -> str:
        """Return it as one line."""
        waits = ", ".join(f"{name} {count:,}" for name, count in self.waiting.items())
        waiting = f"waiting {sum(self.waiting.values()):,}{f' ({waits})' if waits else ''}"
        return f"failed {self.failed:,} · {waiting} · oldest pending {self.oldest_pending_s:,.0f} s"


@dataclass(frozen=True)
class Statistics:
    """Counts of deliveries and dead letters."""

    engine: Engine
    grace_s: float  # the relay's first and its longest
    grace_max_s: float

    @classmethod
    def of(cls, runtime: Runtime) -> Self:
        """Return those of a project."""
        settings = runtime.settings
        return cls(runtime.engine, settings.relay_grace_s, settings.relay_grace_max_s)

    def overview(self) -> Overview:
        """Count everything; counting done deliveries scans the table."""
        found = self.open()
        return replace(found, deliveries={**found.deliveries, **self.done()})

    def open(self) -> Overview:
        """Count all but done deliveries; the cost does not grow with their number."""
        with self.engine.connect() as connection:
            rows = connection.execute(text(OPEN)).all()
            return Overview(
                {(status, handler): n for status, handler, n in rows},
                self._oldest_pending(connection),
                dict(_pairs(connection, FAILURES)),
                dict(_pairs(connection, DEAD_LETTERS)),
                dict(_pairs(connection, RERUNS)),
            )

    def summary(self) -> Summary:
        """Count what failed and what waits."""
        with self.engine.connect() as connection:
            return Summary(
                connection.execute(text(FAILED)).scalar_one(),
                dict(_pairs(connection, WAITING)),
                self._oldest_pending(connection),
            )

    def _oldest_pending(self, connection: Connection) -> float:
        facts = {"grace_s": self.grace_s, "grace_max_s": self.grace_max_s}
        seconds: float = connection.execute(text(OLDEST_PENDING), facts).scalar_one()
        return seconds

    def waits(self) -> Counts:
        """Count waiting deliveries by (handler, what they wait for)."""
        with self.engine.connect() as connection:
            return {(handler, why): n for handler, why, n in connection.execute(text(WAITS))}

    def done(self) -> Counts:
        """Count done deliveries by handler."""
        with self.engine.connect() as connection:
            return {(status, handler): n for status, handler, n in connection.execute(text(DONE))}


def _pairs(connection: Connection, query: str) -> list[tuple[Any, int]]:
    return [(key, count) for key, count in connection.execute(text(query))]
