"""Several servers of a kind: failover, and what it must not lose."""
