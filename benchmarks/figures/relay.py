"""The relay's time per delivery, with a long history and many pending rows, and with neither."""

from __future__ import annotations

import time
from itertools import cycle, islice
from statistics import median

from benchmarks.figure import Figure, ratios
from benchmarks.scale import Scale
from benchmarks.servers import Servers
from messaging.worker.housekeeping import relay
from tasks import app

FEW = 1_000

ROWS = """
INSERT INTO deliveries (
    id, event_id, event_type, payload, handler,
    due_at, grace_s, correlation_id, causation_id, status, finished_at
)
SELECT gen_random_uuid(), gen_random_uuid(), 'Deallocated',
    jsonb_build_object('orderid', 'o' || n, 'sku', 'SKU-0001', 'qty', 1), 'reallocate',
    now() - interval '1 hour', 15, 'c', 'c', %s, CASE %s WHEN 'done' THEN now() END
FROM generate_series(1, %s) n"""

#: Without a write-ahead log, and with indexes built at the end: millions of rows in minutes.
QUICKLY = """
DO $$
DECLARE referrer regclass;
BEGIN
    FOR referrer IN SELECT conrelid::regclass FROM pg_constraint
        WHERE confrelid = 'deliveries'::regclass AND contype = 'f' AND conrelid <> confrelid
    LOOP
        EXECUTE 'ALTER TABLE ' || referrer || ' SET UNLOGGED';
    END LOOP;
END $$;
ALTER TABLE deliveries SET UNLOGGED;
DROP INDEX deliveries_correlation"""
WHOLE_AGAIN = "CREATE INDEX deliveries_correlation ON deliveries (correlation_id)"
#: A table that grew over time has been vacuumed; otherwise autovacuum would start during the measurement.
KEPT = "VACUUM (ANALYZE) deliveries"


def measure(servers: Servers, scale: Scale) -> list[Figure]:
    """Measure with few rows, then with many, then with few again."""
    few = _few(servers, scale.rounds)
    servers.rows(QUICKLY)
    _add(servers, "done", scale.relay_done)
    servers.rows(WHOLE_AGAIN)
    servers.rows(KEPT)
    many = _many(servers, scale.relay_pending)
    servers.rows("TRUNCATE deliveries CASCADE")
    few += _few(servers, scale.rounds)
    rounds = max(len(few), len(many))
    few, many = _as_many(few, rounds), _as_many(many, rounds)
    what = f"relay, time per row: {scale.relay_pending:,} pending, {scale.relay_done:,} done"
    return [
        Figure(
            "relay", what, f"{FEW:,} pending, none done", 1.2, at_least=False, ratios=ratios(many, few),
            measured=f"{median(many):.3f} : {median(few):.3f} ms",
        )
    ]  # fmt: skip


def _few(servers: Servers, rounds: int) -> list[float]:
    times = []
    for _ in range(rounds):
        servers.rows("TRUNCATE deliveries CASCADE")
        _add(servers, "pending", FEW)
        times.append(_relay_once(servers))
    return times


def _many(servers: Servers, pending: int) -> list[float]:
    _add(servers, "pending", pending)
    times = []
    while servers.number("SELECT count(*) FROM deliveries WHERE status = 'pending' AND due_at <= now()"):
        times.append(_relay_once(servers))
    return times


def _relay_once(servers: Servers) -> float:
    """Return the milliseconds per row of one run."""
    start = time.perf_counter()
    sent = relay(app.dispatcher)
    spent = time.perf_counter() - start
    servers.flush_redis()
    return spent * 1000 / sent


def _add(servers: Servers, status: str, count: int) -> None:
    servers.rows(ROWS, (status, status, count))


def _as_many(values: list[float], count: int) -> list[float]:
    """Repeat the values until there are this many."""
    return list(islice(cycle(values), count))
