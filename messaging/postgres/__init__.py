"""PostgreSQL: transactions, the outbox of deliveries, the inbox of commands."""
