"""Whether an attempt whose failure could only be noted beside its delivery's row was a trial."""

from __future__ import annotations

from alembic import op

revision = "m015"
down_revision = "m014"
branch_labels = None
depends_on = None

UPGRADE = "ALTER TABLE open_attempts ADD COLUMN is_trial boolean NOT NULL DEFAULT false;"

DOWNGRADE = "ALTER TABLE open_attempts DROP COLUMN is_trial;"


def upgrade() -> None:
    """Add the column, which does not rewrite the table."""
    op.execute(UPGRADE)


def downgrade() -> None:
    """Drop it."""
    op.execute(DOWNGRADE)
