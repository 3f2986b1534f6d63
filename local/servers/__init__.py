"""Servers on loopback over folders of their own: PostgreSQL, Redis, the mail sink."""
