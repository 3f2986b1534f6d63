"""A pool as those of gevent and eventlet, as far as a worker can know."""

from __future__ import annotations

from celery.concurrency.solo import TaskPool


class GreenPool(TaskPool):
    """Calls itself green."""

    is_green = True
