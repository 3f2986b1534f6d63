"""How brokers are reached: what differs between their kinds, TLS, and signed messages."""
