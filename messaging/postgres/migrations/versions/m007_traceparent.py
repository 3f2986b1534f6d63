"""Keep the trace in which an event was raised, beside its deliveries and its announcement.

An older release leaves it empty; such a delivery is handled in a trace of its own.
"""

from __future__ import annotations

from alembic import op

revision = "m007"
down_revision = "m006"
branch_labels = None
depends_on = None

UPGRADE = """
ALTER TABLE deliveries ADD COLUMN traceparent text;
ALTER TABLE announcements ADD COLUMN traceparent text;
"""

DOWNGRADE = """
ALTER TABLE deliveries DROP COLUMN traceparent;
ALTER TABLE announcements DROP COLUMN traceparent;
"""


def upgrade() -> None:
    """Add the columns; neither rewrites its table."""
    op.execute(UPGRADE)


def downgrade() -> None:
    """Drop them."""
    op.execute(DOWNGRADE)
