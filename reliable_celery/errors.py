"""Errors that senders get when their message cannot be run.

A sender without this package sees the class name and `args`. So each error has one argument, its text.
"""

from __future__ import annotations


class MessageRefused(Exception):
    """A message was set aside as a dead letter."""


class InvalidMessage(MessageRefused):
    """No task can read a message; `field` says where it is wrong, `rule` which rule it breaks."""

    def __init__(self, field: str, rule: str = "") -> None:
        text = f"{field} {rule}".rstrip()
        super().__init__(text)
        self.field, _, self.rule = text.partition(" ")


class WorkerCrashed(MessageRefused):
    """Too many workers died while they ran a message."""
