"""Products in PostgreSQL: one round trip locks and loads the slice that a decision needs, one saves it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from allocation.domain.commands import Allocate
from allocation.domain.events import Deallocated
from allocation.domain.model import Batch, OrderLine, Product
from messaging.messages import Message
from messaging.postgres.repository import PostgresRepository
from messaging.postgres.shared import Read
from messaging.postgres.transaction import Row, Statement, Transaction

# The product is locked first and read after, so that what is read is as fresh as the lock. A product that
# another transaction inserts between the two statements was not locked, and must not be read either: the lock
# leaves the SKU that it found in a setting that ends with the transaction, and each read asks for that.
# The lock is taken in a subquery, so that the setting is made once the lock is held.
# NO KEY: the foreign key checks of other transactions need not wait. (docs/adr/003)
LOCK = """
SELECT set_config('allocation.locked_sku', sku, true)
FROM (SELECT sku FROM products WHERE sku = {sku} FOR NO KEY UPDATE) locked"""
LOCKED_SKU = "current_setting('allocation.locked_sku', true)"

LOCK_PRODUCT = Statement(LOCK.format(sku="$1"), "text")

# The first row says that the product exists and whether the line was reported short; the batches follow.
LOAD = """
SELECT NULL AS reference, sku, NULL AS purchased_quantity, NULL::date AS eta, NULL AS allocated_quantity,
       NULL::boolean AS holds,
       EXISTS (SELECT FROM shortages WHERE orderid = {orderid} AND sku = {sku} AND qty = {qty}) AS short
FROM products WHERE sku = {sku} AND {is_locked}
UNION ALL
(SELECT reference, batches.sku, purchased_quantity, eta, allocated_quantity, true, NULL
 FROM allocations JOIN batches ON reference = batch_reference
 WHERE orderid = {orderid} AND allocations.sku = {sku} AND qty = {qty} AND {is_locked})
UNION ALL
(SELECT reference, sku, purchased_quantity, eta, allocated_quantity, false, NULL FROM batches
 WHERE sku = {sku} AND {is_locked} AND open AND purchased_quantity - allocated_quantity >= {qty}
 ORDER BY eta NULLS FIRST, reference LIMIT 1)"""

LOAD_FOR_LINE = Statement(
    LOAD.format(sku="$1", orderid="$2", qty="$3", is_locked=f"$1 = {LOCKED_SKU}"),
    *("text", "text", "integer"),
)

# Both for many lines at once, of one product each. A product that another transaction has locked is not
# waited for; its line gets a row without anything in it.
LOCK_FREE_PRODUCTS = Statement(
    """
SELECT set_config('allocation.locked_skus', array_agg(sku)::text, true)
FROM (SELECT sku FROM products WHERE sku = ANY($1) ORDER BY sku FOR NO KEY UPDATE SKIP LOCKED) locked""",
    "text[]",
)

LOAD_FOR_LINES = Statement(
    f"""
WITH lines AS (
    SELECT *, sku = ANY(nullif(current_setting('allocation.locked_skus', true), '')::text[]) AS locked
    FROM unnest($1, $2, $3) WITH ORDINALITY AS lines (sku, orderid, qty, number)
)
SELECT found.*, number FROM (SELECT * FROM lines WHERE locked) line CROSS JOIN LATERAL (
{LOAD.format(sku="line.sku", orderid="line.orderid", qty="line.qty", is_locked="true")}
) found
UNION ALL
SELECT NULL, NULL, NULL, NULL, NULL, NULL, NULL, number FROM lines
WHERE locked IS NOT true AND EXISTS (SELECT FROM products WHERE products.sku = lines.sku)""",  # noqa: S608
    *("text[]", "text[]", "integer[]"),
)

# The insert waits for any transaction that is inserting the same product, so the lock always finds a row.
LOAD_FOR_BATCH = """
INSERT INTO products (sku) VALUES (%s) ON CONFLICT DO NOTHING;
SELECT FROM products WHERE sku = %s FOR NO KEY UPDATE;
SELECT reference, sku, purchased_quantity, eta, allocated_quantity FROM batches WHERE reference = %s"""

LAST_POSITION = 2**63 - 1

# Walks back from the line allocated last until the rest fits: k lines given back cost k steps in the index,
# which an OR would not use.
LOAD_BY_BATCHREF = f"""
{LOCK.format(sku="(SELECT sku FROM batches WHERE reference = %(ref)s)")};
WITH RECURSIVE batch AS (
    SELECT * FROM batches WHERE reference = %(ref)s AND sku = {LOCKED_SKU}
), freed AS (
    SELECT NULL::text COLLATE "C" AS orderid, 0 AS qty, NULL::bigint AS position,
           allocated_quantity::bigint - %(qty)s AS excess
    FROM batch
    UNION ALL
    SELECT line.orderid, line.qty, line.position, freed.excess - line.qty
    FROM freed CROSS JOIN LATERAL (
        SELECT * FROM allocations
        WHERE batch_reference = %(ref)s AND position < coalesce(freed.position, {LAST_POSITION})
        ORDER BY position DESC LIMIT 1
    ) line
    WHERE freed.excess > 0
)
SELECT batch.reference, batch.sku, batch.purchased_quantity, batch.eta, batch.allocated_quantity,
       freed.orderid, freed.qty
FROM batch LEFT JOIN freed ON freed.position IS NOT NULL ORDER BY freed.position"""  # noqa: S608

INSERT_BATCH = """
INSERT INTO batches (reference, sku, eta, purchased_quantity, allocated_quantity)
VALUES (%s, %s, %s, %s, %s)"""

# A batch that changed since it was read raises a serialization failure, and the command is retried.
UPDATE_BATCH = Statement(
    """
UPDATE batches SET purchased_quantity = $1, allocated_quantity =
    CASE WHEN (purchased_quantity, allocated_quantity) = ($3, $4) THEN $2 ELSE raise_lost_update() END
WHERE reference = $5""",
    *("integer", "integer", "integer", "integer", "text"),
)

INSERT_LINE = Statement(
    "INSERT INTO allocations (orderid, sku, qty, batch_reference) VALUES ($1, $2, $3, $4)",
    *("text", "text", "integer", "text"),
)

INSERT_SHORTAGE = Statement("INSERT INTO shortages VALUES ($1, $2, $3)", "text", "text", "integer")

# Many at once: a correction may free very many lines.
DELETE = """
DELETE FROM {table} USING unnest($1, $2, $3) AS lost (orderid, sku, qty)
WHERE ({table}.orderid, {table}.sku, {table}.qty) = (lost.orderid, lost.sku, lost.qty)"""

DELETE_LINES = Statement(DELETE.format(table="allocations"), "text[]", "text[]", "integer[]")

DELETE_SHORTAGES = Statement(DELETE.format(table="shortages"), "text[]", "text[]", "integer[]")


@dataclass(frozen=True)
class Loaded:
    """A batch as it was read, to tell what has changed since."""

    quantities: tuple[int, int]  # purchased, allocated
    lines: tuple[OrderLine, ...]


class PostgresProductRepository(PostgresRepository[Product]):
    """Implements the port `ProductRepository`."""

    def __init__(self, transaction: Transaction) -> None:
        super().__init__(transaction)
        self._loaded: dict[str, Loaded] = {}
        self._short: set[OrderLine] = set()  # as read

    def get_for_line(self, line: OrderLine) -> Product | None:
        """Load the batch that holds the line, if any, and the soonest one with room for it."""
        wanted = line.sku, line.orderid, line.qty
        rows = self.transaction.read_before(LOAD_FOR_LINE, wanted)
        if rows is None:
            self.transaction.write(LOCK_PRODUCT, (line.sku,))
            rows = self.transaction.read(LOAD_FOR_LINE, wanted)
        if not rows:
            return None
        # A batch that holds the line is the answer; the query may return it again, as the batch with room.
        holding = [_batch(row, [line]) for row in rows if row[5]]
        with_room = [_batch(row) for row in rows if row[5] is False]
        self._short = {line for row in rows if row[6]}
        return self.track(Product(line.sku, holding or with_room, self._short))

    def get_or_create(self, sku: str, batchref: str) -> Product:
        """Load the batch with that reference, whatever its SKU, so that a conflicting one is noticed."""
        rows = self.transaction.read(LOAD_FOR_BATCH, (sku, sku, batchref))
        return self.track(Product(sku, [_batch(row) for row in rows]))

    def get_by_batchref(self, batchref: str, qty: int) -> Product | None:
        """Load the batch and the lines allocated last that exceed `qty` pieces."""
        rows = self.transaction.read(LOAD_BY_BATCHREF, {"ref": batchref, "qty": qty})
        if not rows:
            return None
        sku = rows[0][1]
        lines = [OrderLine(row[5], sku, row[6]) for row in rows if row[5] is not None]
        return self.track(Product(sku, [_batch(rows[0], lines)]))

    def save(self) -> None:
        """Write what the handler changed; it runs at the commit."""
        for product in self.seen:
            for batch in product.batches:
                self._save_batch(batch, self._loaded.get(batch.reference))
            self._write_each(INSERT_SHORTAGE, map(_key, product.short - self._short))
            self._delete(DELETE_SHORTAGES, self._short - product.short)

    def track(self, product: Product) -> Product:
        """Remember the product's batches as they were before the handler ran."""
        for batch in product.batches:
            self._loaded[batch.reference] = _loaded(batch)
        return super().track(product)

    def _save_batch(self, batch: Batch, loaded: Loaded | None) -> None:
        now = _loaded(batch)
        if loaded == now:
            return
        if loaded is None:
            self.transaction.write(INSERT_BATCH, (batch.reference, batch.sku, batch.eta, *now.quantities))
        else:
            self.transaction.write(UPDATE_BATCH, (*now.quantities, *loaded.quantities, batch.reference))
        before = loaded.lines if loaded else ()
        lost = [line for line in before if line not in now.lines]
        self._delete(DELETE_LINES, lost)
        # A shortage left behind would keep the line from being reported again.
        self._delete(DELETE_SHORTAGES, lost)
        self._write_each(
            INSERT_LINE, ((*_key(line), batch.reference) for line in now.lines if line not in before)
        )

    def _delete(self, sql: Statement, lines: Collection[OrderLine]) -> None:
        if lines:
            self.transaction.write(sql, _columns(map(_key, lines)))

    def _write_each(self, sql: Statement, rows: Iterable[Row]) -> None:
        for row in rows:
            self.transaction.write(sql, row)


def _loaded(batch: Batch) -> Loaded:
    return Loaded((batch.purchased_quantity, batch.allocated_quantity), tuple(batch.lines))


def _batch(row: Row, lines: Iterable[OrderLine] = ()) -> Batch:
    reference, sku, purchased, eta, allocated = row[:5]
    return Batch(reference, sku, purchased, eta, allocated, lines)


def _key(line: OrderLine) -> tuple[str, str, int]:
    return line.orderid, line.sku, line.qty


def _columns(rows: Iterable[Row]) -> tuple[list[Any], ...]:
    return tuple(list(column) for column in zip(*rows, strict=True))


def read_ahead(transaction: Transaction, messages: Sequence[Message]) -> dict[int, Read | None]:
    """Lock products and read what `get_for_line` will ask for, for many order lines in one round trip."""
    of_lines = [
        (place, (message.sku, message.orderid, message.qty))
        for place, message in enumerate(messages)
        if isinstance(message, Allocate | Deallocated)
    ]
    if not of_lines:
        return {}
    columns = _columns(wanted for _, wanted in of_lines)
    transaction.write(LOCK_FREE_PRODUCTS, (columns[0],))
    found: dict[int, list[Row]] = {}
    for *row, number in transaction.read(LOAD_FOR_LINES, columns):
        found.setdefault(number - 1, []).append(tuple(row))
    return {
        place: Read(LOAD_FOR_LINE, wanted, found[number]) if found[number][0][1] is not None else None
        for number, (place, wanted) in enumerate(of_lines)
        if number in found
    }
