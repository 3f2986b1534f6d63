"""Products, batches and allocations."""

from __future__ import annotations

from alembic import op

revision = "a001"
down_revision = None
branch_labels = ("allocation",)
depends_on = None

# Text sorts by code point, as in Python. `open` is a column of its own so that an update of
# allocated_quantity changes no indexed value and stays on its page (a heap-only tuple).
TABLES = """
CREATE TABLE products (
    sku text COLLATE "C" PRIMARY KEY
);

CREATE TABLE batches (
    reference text COLLATE "C" PRIMARY KEY,
    sku text COLLATE "C" NOT NULL REFERENCES products,
    eta date,
    purchased_quantity integer NOT NULL,
    allocated_quantity integer NOT NULL DEFAULT 0,
    open boolean NOT NULL GENERATED ALWAYS AS (allocated_quantity < purchased_quantity) STORED,
    CONSTRAINT never_over_allocated CHECK (allocated_quantity BETWEEN 0 AND purchased_quantity)
) WITH (fillfactor = 80);
CREATE INDEX batches_open ON batches (sku, eta NULLS FIRST, reference) WHERE open;

CREATE TABLE allocations (
    orderid text COLLATE "C" NOT NULL,
    sku text COLLATE "C" NOT NULL,
    qty integer NOT NULL CHECK (qty > 0),
    batch_reference text COLLATE "C" NOT NULL REFERENCES batches,
    position bigint GENERATED ALWAYS AS IDENTITY,
    PRIMARY KEY (orderid, sku, qty)
);
CREATE INDEX allocations_of_batch ON allocations (batch_reference, position);
"""


def upgrade() -> None:
    """Create the tables."""
    op.execute(TABLES)


def downgrade() -> None:
    """Drop the tables."""
    op.execute("DROP TABLE allocations, batches, products")
