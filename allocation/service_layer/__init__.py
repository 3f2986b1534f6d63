"""Handlers: what the project does with each message."""
