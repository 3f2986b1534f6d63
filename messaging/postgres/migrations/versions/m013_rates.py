"""When the last delivery of a rate began, beside the times that are reserved."""

from __future__ import annotations

from alembic import op

revision = "m013"
down_revision = "m012"
branch_labels = None
depends_on = None

# From then on the next may begin; an older release leaves it empty.
UPGRADE = "ALTER TABLE rates ADD COLUMN free_at timestamptz;"

DOWNGRADE = "ALTER TABLE rates DROP COLUMN free_at;"


def upgrade() -> None:
    """Add the column."""
    op.execute(UPGRADE)


def downgrade() -> None:
    """Drop it."""
    op.execute(DOWNGRADE)
