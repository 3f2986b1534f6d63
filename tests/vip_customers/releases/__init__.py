"""Releases of the shop that should never have gone out; workers run them as `celery -A`."""
