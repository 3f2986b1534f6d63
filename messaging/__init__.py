"""A message bus on Celery and PostgreSQL that any project can build on."""

#: As in pyproject.toml; here as well, since a checkout and an image carry no metadata of a package.
__version__ = "1.0.0"
