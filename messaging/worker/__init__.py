"""Celery: the tasks and the parts of the worker."""
