"""The time of one `Allocate`, in process, for a SKU with a long history and one without."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

from allocation.bootstrap import project
from allocation.domain.commands import Allocate
from benchmarks.figure import Figure, ratios
from benchmarks.scale import Scale
from benchmarks.servers import Servers
from messaging.postgres.inbox import CommandJob
from messaging.project.runtime import Runtime

PAST = """
INSERT INTO products (sku) VALUES (%(sku)s);
INSERT INTO batches (reference, sku, purchased_quantity, allocated_quantity)
SELECT %(sku)s || '-' || n, %(sku)s, %(lines)s, %(lines)s FROM generate_series(1, %(batches)s) n;
INSERT INTO allocations (orderid, sku, qty, batch_reference)
SELECT %(sku)s || '-' || b || '-' || n, %(sku)s, 1, %(sku)s || '-' || b
FROM generate_series(1, %(batches)s) b, generate_series(1, %(lines)s) n;
INSERT INTO batches (reference, sku, purchased_quantity) VALUES (%(sku)s || '-open', %(sku)s, 2000000000);
ANALYZE"""


def measure(servers: Servers, scale: Scale) -> list[Figure]:
    """Allocate to both alternately."""
    batches = scale.flat_batches
    for sku, count, lines in (("LONG", batches, scale.flat_allocations // batches), ("SHORT", 10, 1)):
        with servers.sql.cursor() as run:
            run.execute(PAST, {"sku": sku, "batches": count, "lines": lines})
    runtime = Runtime(project)
    long, short = [], []
    for number in range(scale.rounds):
        pairs = [
            (_timed(runtime, "LONG", f"{number}-{n}"), _timed(runtime, "SHORT", f"{number}-{n}"))
            for n in range(scale.flat_commands)
        ]
        long.append(median(pair[0] for pair in pairs))
        short.append(median(pair[1] for pair in pairs))
    runtime.engine.dispose()
    what = f"time per Allocate, {scale.flat_allocations:,} allocations and {batches:,} exhausted batches"
    return [
        Figure(
            "flat", what, "10 of each", 1.1, at_least=False, ratios=ratios(long, short),
            measured=f"{median(long):.2f} : {median(short):.2f} ms",
        )
    ]  # fmt: skip


def _timed(runtime: Runtime, sku: str, name: str) -> float:
    """Return the milliseconds of one command, including its commit."""
    command = Allocate(f"{sku}-new-{name}", sku, 1)
    job = CommandJob(command.orderid, command, command.orderid)
    handle: Callable[..., object] = project.bus.handle
    start = time.perf_counter()
    handle(command, runtime.unit_of_work(job))
    return (time.perf_counter() - start) * 1000
