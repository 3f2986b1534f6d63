"""Operator's actions: list failures, examine them, re-run them, and send messages by hand."""
