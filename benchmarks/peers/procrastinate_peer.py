"""procrastinate: the queue is a table in the same PostgreSQL; it has no results."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from procrastinate import App, JobContext, PsycopgConnector, SyncPsycopgConnector

from benchmarks.peers import job
from benchmarks.peers.peer import Line, Peer, Programs, database_url

app = App(connector=PsycopgConnector(conninfo=database_url()))


@app.task(name="lines.allocate", queue="lines", pass_context=True)
def allocate(context: JobContext, orderid: str, sku: str, qty: int) -> str | None:
    """Allocate one line."""
    return job.allocate(f"procrastinate-{context.job.id}", orderid, sku, qty)


def workers(processes: int, concurrency: int = 1) -> Programs:
    """One worker per process."""
    one = ["-m", "procrastinate", "--app", f"{__name__}.app", "worker", "--concurrency", str(concurrency)]
    return [one for _ in range(processes)]


def choices(cores: int) -> dict[str, Programs]:
    """Fewer and more of both."""
    return {
        f"{processes} processes × {concurrency} at a time": workers(processes, concurrency)
        for processes, concurrency in ((cores, 1), (cores, 8), (2 * cores, 1))
    }


def prepare() -> None:
    """Create its tables."""
    with app.replace_connector(SyncPsycopgConnector(conninfo=database_url())) as sync_app, sync_app.open():
        sync_app.schema_manager.apply_schema()


def publish(lines: Sequence[Line]) -> None:
    """Enqueue in one statement."""
    with app.replace_connector(SyncPsycopgConnector(conninfo=database_url())) as sync_app, sync_app.open():
        jobs: list[Any] = [{"orderid": line.orderid, "sku": line.sku, "qty": line.qty} for line in lines]
        sync_app.tasks["lines.allocate"].batch_defer(*jobs)


peer = Peer(
    "procrastinate_peer",
    "procrastinate",
    workers,
    publish,
    prepare=prepare,
    choices=choices,
    lacks="stores no results",
)
