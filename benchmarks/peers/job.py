"""The job written by hand in SQL with psycopg2: seven prepared statements in one transaction."""

from __future__ import annotations

import json
import threading

import psycopg2
from psycopg2 import extensions

from benchmarks.peers.peer import database_url

_local = threading.local()

#: Prepared once per connection, as in this backend: planning them each time costs more than running them.
PREPARE = """
PREPARE job_lock (text) AS SELECT FROM products WHERE sku = $1 FOR NO KEY UPDATE;
PREPARE job_find (text, text, integer) AS
    SELECT batch_reference FROM allocations WHERE orderid = $1 AND sku = $2 AND qty = $3;
PREPARE job_read (text) AS SELECT reference, eta, purchased_quantity - allocated_quantity FROM batches
    WHERE sku = $1 AND open ORDER BY eta NULLS FIRST, reference;
PREPARE job_insert (text, text, integer, text) AS
    INSERT INTO allocations (orderid, sku, qty, batch_reference) VALUES ($1, $2, $3, $4);
PREPARE job_update (integer, text) AS
    UPDATE batches SET allocated_quantity = allocated_quantity + $1 WHERE reference = $2;
PREPARE job_answer (text, text, jsonb) AS
    INSERT INTO inbox (task_id, command, result) VALUES ($1, $2, $3)"""

LOCK = "EXECUTE job_lock (%s)"
FIND = "EXECUTE job_find (%s, %s, %s)"
READ = "EXECUTE job_read (%s)"
INSERT = "EXECUTE job_insert (%s, %s, %s, %s)"
UPDATE = "EXECUTE job_update (%s, %s)"
ANSWER = "EXECUTE job_answer (%s, %s, %s)"


def allocate(task_id: str, orderid: str, sku: str, qty: int) -> str | None:
    """Allocate one line; the seventh statement is COMMIT."""
    with connection() as opened, opened.cursor() as run:
        batchref = allocate_line(run, orderid, sku, qty)
        run.execute(ANSWER, (task_id, f"{orderid} {sku} {qty}", json.dumps(batchref)))
    return batchref


def allocate_line(run: extensions.cursor, orderid: str, sku: str, qty: int) -> str | None:
    """Lock, read, decide, write; the caller commits."""
    run.execute(LOCK, (sku,))
    if not run.fetchall():
        raise LookupError(f"Invalid sku {sku}")
    run.execute(FIND, (orderid, sku, qty))
    if found := run.fetchone():
        return str(found[0])
    run.execute(READ, (sku,))
    batchref = next((str(ref) for ref, _, room in run.fetchall() if room >= qty), None)
    if batchref is not None:
        run.execute(INSERT, (orderid, sku, qty, batchref))
        run.execute(UPDATE, (qty, batchref))
    return batchref


def connection() -> extensions.connection:
    """Return the thread's connection with its prepared statements, opened on first use, after the fork."""
    if not hasattr(_local, "connection"):
        _local.connection = psycopg2.connect(database_url())
        with _local.connection, _local.connection.cursor() as run:
            run.execute(PREPARE)
    opened: extensions.connection = _local.connection
    return opened
