"""A plain Celery app that loses no message when its workers are killed; see README.md."""
