"""A message bus on Celery and PostgreSQL that any project can build on."""

#: Also in pyproject.toml; repeated here because a checkout and an image have no package metadata.
__version__ = "1.0.0"
