"""The group of failures that a delivery belongs to."""

from __future__ import annotations

from alembic import op

revision = "m011"
down_revision = "m010"
branch_labels = None
depends_on = None

# Empty in rows that an older release has failed; queries then derive a group from the error.
UPGRADE = """
ALTER TABLE deliveries ADD COLUMN failure_group text;
ALTER TABLE open_attempts ADD COLUMN fingerprint text;
"""

DOWNGRADE = """
ALTER TABLE deliveries DROP COLUMN failure_group;
ALTER TABLE open_attempts DROP COLUMN fingerprint;
"""


def upgrade() -> None:
    """Add the columns; neither rewrites its table."""
    op.execute(UPGRADE)


def downgrade() -> None:
    """Drop them."""
    op.execute(DOWNGRADE)
