"""A handler that keeps the order of each product's events, fails at random, and leaves what a check needs."""

from __future__ import annotations

import random

from allocation.domain.events import Allocated, Deallocated
from allocation.service_layer.unit_of_work import UnitOfWork
from messaging.options import handler

#: `moods` has a row while a fault makes the handler fail more often.
TABLES = """
CREATE TABLE moves (position bigint GENERATED ALWAYS AS IDENTITY, delivery_id uuid, sku text);
CREATE TABLE moods (fails double precision);
"""

#: How often the handler fails, from 0 to 1.
FAILS = 0.03

#: What is done, in the order in which the raising transactions committed: those of one product lock it. Those
#: of a group have one commit; the numbers of its statements rise, with or without savepoints, and after a
#: recovery, which forgets those, the positions do.
RAISED = """
WITH raised AS (
    SELECT own.id, own.lane, own.position, pg_xact_commit_timestamp(coalesce(inbox.xmin, cause.xmin)) AS at,
           coalesce(inbox.cmin, cause.cmin)::text::bigint AS statement
    FROM deliveries own LEFT JOIN inbox ON task_id = own.causation_id
    LEFT JOIN deliveries cause ON cause.id::text = own.causation_id
    WHERE own.handler = 'record_move' AND own.status = 'done'
), done AS (
    SELECT lane, id, row_number() OVER (PARTITION BY lane ORDER BY moves.position) AS was,
           row_number() OVER (PARTITION BY lane ORDER BY at, statement, raised.position) AS expected
    FROM raised JOIN moves ON delivery_id = id
)"""

RULES = {
    "effects of a handler in order are not in the order of the commits": f"""
        {RAISED} SELECT lane, id, was, expected FROM done WHERE was <> expected""",  # noqa: S608
    "a handler in order is done without an effect": """
        SELECT id FROM deliveries WHERE handler = 'record_move' AND status = 'done'
        AND NOT EXISTS (SELECT FROM moves WHERE delivery_id = id)""",
}
DOUBLES = {
    "a handler in order had its effect twice": """
        SELECT delivery_id FROM moves GROUP BY 1 HAVING count(*) > 1""",
}


@handler(in_order_by="sku")
def record_move(event: Allocated | Deallocated, uow: UnitOfWork) -> None:
    """Leave a row in the delivery's own transaction, before or after which it may fail."""
    transaction = uow.transaction  # type: ignore[attr-defined]
    [(fails,)] = transaction.read("SELECT coalesce(max(fails), %s) FROM moods", (FAILS,))
    if random.random() < fails / 2:
        raise RuntimeError("before the effect")
    row = (uow.job.id, event.sku)  # type: ignore[attr-defined]
    transaction.write("INSERT INTO moves (delivery_id, sku) VALUES (%s, %s)", row)
    if random.random() < fails / 2:
        raise RuntimeError("after the effect")
