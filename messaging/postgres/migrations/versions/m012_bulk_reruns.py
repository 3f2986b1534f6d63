"""Re-runs of many deliveries that go on until they end, whatever dies."""

from __future__ import annotations

from alembic import op

revision = "m012"
down_revision = "m011"
branch_labels = None
depends_on = None

# One row for each that is under way; its entry in `audit` has its progress, and its outcome.
UPGRADE = """
CREATE TABLE bulk_reruns (
    audit_id bigint PRIMARY KEY,
    filter jsonb NOT NULL,
    before timestamptz NOT NULL,
    remaining bigint NOT NULL,
    expected bigint NOT NULL,
    rate double precision,
    paced_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    canary uuid[],
    canary_until timestamptz
);
"""

DOWNGRADE = "DROP TABLE bulk_reruns;"


def upgrade() -> None:
    """Create the table."""
    op.execute(UPGRADE)


def downgrade() -> None:
    """Drop it."""
    op.execute(DOWNGRADE)
