"""Attempts whose end is not in their delivery's row, and an index for pruning."""

from __future__ import annotations

from alembic import op

revision = "m004"
down_revision = "m003"
branch_labels = None
depends_on = None

# No foreign key: its check would wait for the delivery's lock, which another worker may hold.
UPGRADE = """
CREATE TABLE open_attempts (
    token uuid PRIMARY KEY,
    delivery_id uuid NOT NULL,
    run integer NOT NULL,
    state text NOT NULL CHECK (state IN ('begun', 'failed', 'seen')),
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    worker text NOT NULL,
    error text,
    traceback text
);
CREATE INDEX open_attempts_of_delivery ON open_attempts (delivery_id, run);
CREATE UNIQUE INDEX open_attempts_seen ON open_attempts (delivery_id, run) WHERE state = 'seen';

-- Of the attempt that is listed; one that cannot know whether it was committed is noted again.
ALTER TABLE attempts ADD COLUMN token uuid;

-- Free space is used again, so that any range of pages has old rows and new ones: no work for a BRIN index.
CREATE INDEX deliveries_prunable ON deliveries (finished_at) WHERE status IN ('done', 'discarded');
DROP INDEX deliveries_ended;
ALTER INDEX deliveries_prunable RENAME TO deliveries_ended;
"""

DOWNGRADE = """
DROP INDEX deliveries_ended;
CREATE INDEX deliveries_ended ON deliveries USING brin (finished_at) WITH (pages_per_range = 16);
ALTER TABLE attempts DROP COLUMN token;
DROP TABLE open_attempts;
"""


def upgrade() -> None:
    """Create the table, and the index in place of the old one."""
    op.execute(UPGRADE)


def downgrade() -> None:
    """Drop the table, and restore the old index."""
    op.execute(DOWNGRADE)
