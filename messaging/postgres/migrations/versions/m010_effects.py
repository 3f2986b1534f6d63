"""Keep which events a message raised and which mails it sent, for the operator's `trace`.

An older release leaves them empty.
"""

from __future__ import annotations

from alembic import op

revision = "m010"
down_revision = "m009"
branch_labels = None
depends_on = None

UPGRADE = """
ALTER TABLE inbox ADD COLUMN effects json;
ALTER TABLE deliveries ADD COLUMN effects json;
"""

DOWNGRADE = """
ALTER TABLE inbox DROP COLUMN effects;
ALTER TABLE deliveries DROP COLUMN effects;
"""


def upgrade() -> None:
    """Add the columns; neither rewrites its table."""
    op.execute(UPGRADE)


def downgrade() -> None:
    """Drop them."""
    op.execute(DOWNGRADE)
