"""Keep what the relay and the schedule do short, however many deliveries have failed or are pending.

Only a delivery that fails, is re-run by the schedule, or waits for its turn has an entry in an index.
"""

from __future__ import annotations

from alembic import op

revision = "m014"
down_revision = "m013"
branch_labels = None
depends_on = None

# The column first: a step of a re-run locks its row, then deliveries, which wait while an index is made.
UPGRADE = """
-- The end of the last failure that a re-run of many has looked at.
ALTER TABLE bulk_reruns ADD COLUMN reached timestamptz;
CREATE INDEX deliveries_failed_by_handler ON deliveries (handler, event_type, auto_reruns, finished_at)
    WHERE status = 'failed' AND crashes = 0;
CREATE INDEX deliveries_rerunning ON deliveries (handler)
    WHERE status IN ('pending', 'waiting') AND auto_reruns > 0;
CREATE INDEX deliveries_waiting_for_order ON deliveries (lane, handler)
    WHERE status = 'waiting' AND waits_for = 'order';
"""

DOWNGRADE = """
DROP INDEX deliveries_failed_by_handler, deliveries_rerunning, deliveries_waiting_for_order;
ALTER TABLE bulk_reruns DROP COLUMN reached;
"""


def upgrade() -> None:
    """Create the indexes, and add the column."""
    op.execute(UPGRADE)


def downgrade() -> None:
    """Drop them."""
    op.execute(DOWNGRADE)
