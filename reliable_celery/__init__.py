"""Celery workers that lose no message on Redis, and that no message can break on any broker.

Each part is switched on by one Celery setting: see README.md. Celery, kombu and redis-py are all it needs.
"""
