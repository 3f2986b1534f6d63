"""A message bus on Celery and PostgreSQL that any project can build on."""
