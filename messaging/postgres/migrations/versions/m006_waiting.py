"""Deliveries that wait, pauses, and the record of what operators did."""

from __future__ import annotations

from alembic import op

revision = "m006"
down_revision = "m005"
branch_labels = None
depends_on = None

# NOT VALID: every old row satisfies the constraints, so that the table need not be read.
UPGRADE = """
ALTER TABLE deliveries
    ADD COLUMN waits_for text,
    DROP CONSTRAINT deliveries_status_check,
    ADD CONSTRAINT deliveries_status_check
        CHECK (status IN ('pending', 'waiting', 'done', 'failed', 'discarded')) NOT VALID,
    DROP CONSTRAINT ended_deliveries_have_an_end,
    ADD CONSTRAINT ended_deliveries_have_an_end
        CHECK ((status IN ('pending', 'waiting')) = (finished_at IS NULL)) NOT VALID,
    ADD CONSTRAINT waiting_deliveries_have_a_reason
        CHECK (status <> 'waiting' OR waits_for IS NOT NULL) NOT VALID;
CREATE INDEX deliveries_waiting ON deliveries (waits_for, handler, event_type, due_at)
    WHERE status = 'waiting';

-- The name is empty where everything is paused.
CREATE TABLE pauses (
    scope text NOT NULL CHECK (scope IN ('handler', 'event', 'all')),
    name text NOT NULL,
    actor text NOT NULL,
    reason text NOT NULL,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (scope, name)
);

-- It outlives the deliveries.
CREATE TABLE audit (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    actor text NOT NULL,
    action text NOT NULL,
    subject text NOT NULL,
    reason text,
    count bigint,
    outcome text
);
CREATE INDEX audit_at ON audit (at);
"""

# An older release cannot wake what waits.
DOWNGRADE = """
DROP TABLE audit, pauses;
UPDATE deliveries SET status = 'pending' WHERE status = 'waiting';
DROP INDEX deliveries_waiting;
ALTER TABLE deliveries
    DROP CONSTRAINT waiting_deliveries_have_a_reason,
    DROP CONSTRAINT ended_deliveries_have_an_end,
    ADD CONSTRAINT ended_deliveries_have_an_end CHECK ((status = 'pending') = (finished_at IS NULL)),
    DROP CONSTRAINT deliveries_status_check,
    ADD CONSTRAINT deliveries_status_check
        CHECK (status IN ('pending', 'done', 'failed', 'discarded')),
    DROP COLUMN waits_for;
"""


def upgrade() -> None:
    """Add the state, the reason and the tables."""
    op.execute(UPGRADE)


def downgrade() -> None:
    """Undo it; what waits becomes pending."""
    op.execute(DOWNGRADE)
