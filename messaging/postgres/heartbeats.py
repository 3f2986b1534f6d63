"""The last runs of the housekeeping: they show that beat and its worker are alive."""

from __future__ import annotations

import time
from dataclasses import dataclass

from sqlalchemy import Engine, text

NOTE = text("""
INSERT INTO heartbeats (job, at, worker, clock_offset_s)
VALUES (:job, now(), :worker, :clock - extract(epoch FROM clock_timestamp()))
ON CONFLICT (job) DO UPDATE SET
    at = excluded.at, worker = excluded.worker, clock_offset_s = excluded.clock_offset_s
""")

READ = text("""
SELECT job, worker, extract(epoch FROM now() - at)::float AS age_s, clock_offset_s FROM heartbeats
""")


@dataclass(frozen=True)
class Heartbeat:
    """The last run of one job."""

    job: str
    worker: str
    age_s: float  # seconds ago, by the database's clock
    clock_offset_s: float  # seconds by which the worker's clock is ahead of the database's


@dataclass(frozen=True)
class Heartbeats:
    """The last run of each housekeeping job."""

    engine: Engine

    def note(self, job: str, worker: str) -> None:
        """Record that `job` has just run."""
        with self.engine.begin() as connection:
            connection.execute(NOTE, {"job": job, "worker": worker, "clock": time.time()})

    def read(self) -> dict[str, Heartbeat]:
        """Return the last runs by job."""
        with self.engine.connect() as connection:
            return {row.job: Heartbeat(*row) for row in connection.execute(READ)}
