"""Errors that senders get when their message cannot be run.

A sender without this package sees the class name and `args`. So each error has one argument, its text.
"""

from __future__ import annotations

from billiard.exceptions import Terminated, TimeLimitExceeded, WorkerLostError
from celery.exceptions import TaskPredicate

#: Errors by which Celery's worker learns something other than that a task has failed: that it must end, that
#: the message is settled in another way, or that a process was lost. A task must not let those of others out.
MEANT_FOR_CELERY = (MemoryError, TaskPredicate, Terminated, TimeLimitExceeded, WorkerLostError)


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
