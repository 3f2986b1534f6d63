"""Handlers with several limits at once, on real workers."""
