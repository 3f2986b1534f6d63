"""The job written by hand in SQL with psycopg2: seven statements in one transaction."""

from __future__ import annotations

import json
import threading

import psycopg2
from psycopg2 import extensions

from benchmarks.peers.peer import database_url

_local = threading.local()

LOCK = "SELECT FROM products WHERE sku = %s FOR NO KEY UPDATE"
FIND = "SELECT batch_reference FROM allocations WHERE orderid = %s AND sku = %s AND qty = %s"
READ = """SELECT reference, eta, purchased_quantity - allocated_quantity FROM batches
    WHERE sku = %s AND open ORDER BY eta NULLS FIRST, reference"""
INSERT = "INSERT INTO allocations (orderid, sku, qty, batch_reference) VALUES (%s, %s, %s, %s)"
UPDATE = "UPDATE batches SET allocated_quantity = allocated_quantity + %s WHERE reference = %s"
ANSWER = "INSERT INTO inbox (task_id, command, result) VALUES (%s, %s, %s)"


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
    """Return the thread's connection, opened on first use, after the fork."""
    if not hasattr(_local, "connection"):
        _local.connection = psycopg2.connect(database_url())
    opened: extensions.connection = _local.connection
    return opened
