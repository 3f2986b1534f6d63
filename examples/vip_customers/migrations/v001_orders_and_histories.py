"""Orders, and the histories of customers."""

from alembic import op

revision, down_revision, branch_labels, depends_on = "v001", None, ("vip",), None


def upgrade() -> None:
    """Create the tables."""
    op.execute("""
    CREATE TABLE orders (
        orderid text PRIMARY KEY, customer_id text NOT NULL, placed_on date NOT NULL,
        items integer NOT NULL, amount integer NOT NULL -- cents
    );
    CREATE TABLE histories (customer_id text PRIMARY KEY, is_vip boolean NOT NULL DEFAULT false);
    CREATE TABLE history_orders (customer_id text, orderid text, PRIMARY KEY (customer_id, orderid));
    """)
