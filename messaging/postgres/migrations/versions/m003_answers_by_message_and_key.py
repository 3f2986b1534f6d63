"""Answers belong to messages, effects to idempotency keys; refusals are answers too."""

from __future__ import annotations

from alembic import op

revision = "m003"
down_revision = "m002"
branch_labels = None
depends_on = None

# One row per answered message, with its result or the error of a refusal. At most one message of a key has a
# result. The key is null if it is the task id, as in the rows that older releases write.
ANSWERS = """
ALTER TABLE inbox ADD COLUMN idempotency_key text, ADD COLUMN error json;
CREATE UNIQUE INDEX inbox_effects ON inbox ((coalesce(idempotency_key, task_id))) WHERE error IS NULL;
-- What is pruned leaves room for new rows, so that pages hold old and new ones: no work for a BRIN index.
DROP INDEX inbox_at;
CREATE INDEX inbox_at ON inbox (at);
"""

# For an UPDATE whose row has changed since it was read: the transaction fails and is retried.
LOST_UPDATE = """
CREATE FUNCTION raise_lost_update() RETURNS integer LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the row has changed since it was read' USING ERRCODE = 'serialization_failure';
END $$;
"""


def upgrade() -> None:
    """Add the columns, the index and the function."""
    op.execute(ANSWERS + LOST_UPDATE)


def downgrade() -> None:
    """Drop them, and delete refusals, which older releases would read as results."""
    op.execute(
        "DELETE FROM inbox WHERE error IS NOT NULL;"
        " ALTER TABLE inbox DROP COLUMN idempotency_key, DROP COLUMN error;"
        " DROP INDEX inbox_at; CREATE INDEX inbox_at ON inbox USING brin (at) WITH (pages_per_range = 16);"
        " DROP FUNCTION raise_lost_update()"
    )
