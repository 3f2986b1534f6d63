"""Add the aggregate's key to announcements, and set their time at the insert under its lock.

An older release writes no subject, and uses the new default for the time.
"""

from __future__ import annotations

from alembic import op

revision = "m005"
down_revision = "m004"
branch_labels = None
depends_on = None

UPGRADE = """
ALTER TABLE announcements
    ADD COLUMN subject text,
    ALTER COLUMN at SET DEFAULT clock_timestamp();
"""

DOWNGRADE = """
ALTER TABLE announcements
    DROP COLUMN subject,
    ALTER COLUMN at SET DEFAULT now();
"""


def upgrade() -> None:
    """Add the column and change the default; neither rewrites the table."""
    op.execute(UPGRADE)


def downgrade() -> None:
    """Undo both."""
    op.execute(DOWNGRADE)
