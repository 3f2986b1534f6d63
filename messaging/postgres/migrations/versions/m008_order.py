"""The order of deliveries of one handler and key."""

from __future__ import annotations

from alembic import op

revision = "m008"
down_revision = "m007"
branch_labels = None
depends_on = None

# Of a handler that is `in_order_by` a field: `lane` is that field's value, `position` rises in the order of
# the commits. Without a lane, as in the rows of older releases, a delivery has no order.
UPGRADE = """
CREATE SEQUENCE deliveries_position;
ALTER TABLE deliveries ADD COLUMN lane text, ADD COLUMN position bigint;
CREATE INDEX deliveries_in_order ON deliveries (lane, handler, position)
    WHERE lane IS NOT NULL AND status IN ('pending', 'waiting', 'failed');
"""

DOWNGRADE = """
DROP INDEX deliveries_in_order;
ALTER TABLE deliveries DROP COLUMN lane, DROP COLUMN position;
DROP SEQUENCE deliveries_position;
"""


def upgrade() -> None:
    """Add the columns, their index and the sequence."""
    op.execute(UPGRADE)


def downgrade() -> None:
    """Drop them."""
    op.execute(DOWNGRADE)
