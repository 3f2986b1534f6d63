"""Celery on Redis that loses no message, and on any broker a worker that no message can break.

Each part is switched on by one Celery setting: see README.md. Celery, kombu and redis-py are all it needs.
"""
