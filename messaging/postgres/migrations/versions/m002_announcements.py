"""Events to publish to other apps."""

from __future__ import annotations

from alembic import op

revision = "m002"
down_revision = "m001"
branch_labels = None
depends_on = None

TABLES = """
CREATE TABLE announcements (
    position bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    event_id uuid NOT NULL,
    event_type text NOT NULL,
    payload json NOT NULL,
    correlation_id text NOT NULL,
    causation_id text NOT NULL,
    at timestamptz NOT NULL DEFAULT now()
);
"""


def upgrade() -> None:
    """Create the table."""
    op.execute(TABLES)


def downgrade() -> None:
    """Drop the table."""
    op.execute("DROP TABLE announcements")
