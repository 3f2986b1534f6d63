"""Celery apps and processes for tests of the transport and of the consumer."""
