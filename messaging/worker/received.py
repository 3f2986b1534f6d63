"""A command's message: its id, its key, and whether it is expired or redelivered."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Self

from celery.app.task import Context

from messaging import tracing
from messaging.errors import InvalidMessage, MessagingError
from messaging.messages import IDEMPOTENCY_KEY, SENT_AT, Command
from messaging.postgres.inbox import CommandJob
from messaging.telemetry.work import Kind, Work
from reliable_celery import errors
from reliable_celery.checks import timestamp
from reliable_celery.routing import queue_of


@dataclass(frozen=True)
class Received:
    """One message with a command, or one command of a message with many."""

    task_id: str
    task: str
    key: str | None  # the sender's idempotency key
    correlation_id: str
    redelivered: bool
    expired: bool
    queue: str | None
    traceparent: str | None = None
    sent_at: float | None = None  # seconds since 1970, by the sender's clock
    traces: tuple[str | None, ...] = ()  # of many commands

    @classmethod
    def of(cls, task: str, request: Context) -> Self:
        """Read a task's request.

        Raises:
            InvalidMessage: its id or its key cannot be one.
        """
        delivery = request.delivery_info or {}
        key = request.get(IDEMPOTENCY_KEY)
        return cls(
            checked_name("id", request.id),
            task,
            None if key is None else checked_name(IDEMPOTENCY_KEY, key),
            request.root_id or request.id,
            bool(delivery.get("redelivered")),
            bool(request.expires) and time.time() > _expiry(request),
            queue_of(delivery),
            tracing.checked(request.get(tracing.TRACEPARENT)),
            _time(request.get(SENT_AT)),
            tracing.checked_many(request.get(tracing.TRACES)),
        )

    def one_of_many(self, position: int, task: str, key: str | None) -> Self:
        """Return the command at a position; its id and its default key derive from the message's.

        Raises:
            InvalidMessage: its id or its key cannot be one.
        """
        task_id = checked_name("id", f"{self.task_id}.{position}")
        if key is None and self.key:
            key = f"{self.key}.{position}"
        key = None if key is None else checked_name(IDEMPOTENCY_KEY, key)
        own = self.traces[position] if position < len(self.traces) else None
        return replace(self, task_id=task_id, task=task, key=key, traceparent=own)

    @property
    def is_fresh(self) -> bool:
        """Return whether it is a first delivery that has not expired."""
        return not self.redelivered and not self.expired

    def work(self) -> Work:
        """Return what is to be noted about its handling."""
        return Work(
            Kind.COMMAND,
            self.task,
            self.task_id,
            self.queue or "",
            self.correlation_id,
            redelivered=self.redelivered,
            traceparent=self.traceparent,
            sent_at=self.sent_at,
        )

    def job(self, command: Command) -> CommandJob:
        """Return the job of running the command."""
        return CommandJob(self.task_id, command, self.correlation_id, self.key)

    def job_of_all(self) -> CommandJob:
        """Return the job of a message with many: it is answered whole only where it is refused whole."""
        return CommandJob(self.task_id, Command(), self.correlation_id)

    def readable_job(self, read: Callable[[], Command]) -> CommandJob:
        """Return the job of the command that `read` builds; plain `Command()` stands for an invalid one."""
        try:
            return self.job(read())
        except MessagingError:
            return self.job(Command())


def _time(value: object) -> float | None:
    """Return a time that a sender may have set; None if it is none."""
    return float(value) if isinstance(value, int | float) and abs(value) < 1e12 else None


def _expiry(request: Context) -> float:
    try:
        return timestamp("expires", request.expires)
    except errors.InvalidMessage as error:
        raise InvalidMessage(str(error)) from None


def checked_name(field: str, value: Any) -> str:
    """Check and return an id or a key.

    Raises:
        InvalidMessage: it is not 1 to 255 printable characters.
    """
    if not isinstance(value, str) or not 1 <= len(value) <= 255 or not value.isprintable():
        raise InvalidMessage(field, "must be a text of 1 to 255 printable characters")
    return value
