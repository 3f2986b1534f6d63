"""PostgreSQL: the transaction, the outbox of deliveries, the inbox of commands."""
