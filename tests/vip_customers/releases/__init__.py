"""Faulty releases of the shop; workers run them with `celery -A`."""
