"""Celery: the tasks, and the worker's own parts."""
