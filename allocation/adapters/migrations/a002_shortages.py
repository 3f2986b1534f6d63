"""Lines that lost their stock and were reported out of stock, until they are allocated again."""

from __future__ import annotations

from alembic import op

revision = "a002"
down_revision = "a001"
branch_labels = None
depends_on = None

TABLE = """
CREATE TABLE shortages (
    orderid text COLLATE "C" NOT NULL,
    sku text COLLATE "C" NOT NULL,
    qty integer NOT NULL,
    PRIMARY KEY (orderid, sku, qty)
)
"""


def upgrade() -> None:
    """Create the table."""
    op.execute(TABLE)


def downgrade() -> None:
    """Drop the table."""
    op.execute("DROP TABLE shortages")
