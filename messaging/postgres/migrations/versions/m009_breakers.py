"""Circuit breakers of handlers, and their limits."""

from __future__ import annotations

from alembic import op

revision = "m009"
down_revision = "m008"
branch_labels = None
depends_on = None

# A breaker is closed if `until` is empty, open before that time, and half-open after it.
# `next_at` is the next free place in time of what may run only so often.
UPGRADE = """
CREATE TABLE breakers (
    handler text PRIMARY KEY,
    failures integer NOT NULL DEFAULT 0,
    window_at timestamptz,
    window_failures integer NOT NULL DEFAULT 0,
    opened integer NOT NULL DEFAULT 0,
    since timestamptz,
    until timestamptz,
    last_error text
);
CREATE TABLE rates (
    name text PRIMARY KEY,
    next_at timestamptz NOT NULL
);
ALTER TABLE deliveries ADD COLUMN limit_key text;
CREATE INDEX deliveries_waiting_for_place ON deliveries (handler, limit_key, due_at)
    WHERE status = 'waiting' AND waits_for = 'place';
"""

DOWNGRADE = """
DROP INDEX deliveries_waiting_for_place;
ALTER TABLE deliveries DROP COLUMN limit_key;
DROP TABLE breakers, rates;
"""


def upgrade() -> None:
    """Create the tables, the column and its index."""
    op.execute(UPGRADE)


def downgrade() -> None:
    """Drop them."""
    op.execute(DOWNGRADE)
