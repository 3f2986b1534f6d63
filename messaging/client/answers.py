"""What a sender is told: a result, an error, or that no answer came."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Self

from celery import states
from celery.result import AsyncResult

from messaging import errors
from messaging.errors import MessagingError
from messaging.messages import Command
from messaging.texts import cut


class NotAnswered(MessagingError):
    """A command was sent, and its answer did not come in time; it is safe to send it again with `key`.

    `key` is empty when only the message's id was known: its sender has the key.
    """

    def __init__(self, text: str, key: str = "") -> None:
        super().__init__(text)
        self.key = key


class CommandFailed(MessagingError):
    """The handler raised an unexpected error; the text names its class."""


class Answer(AsyncResult):  # type: ignore[misc]  # Celery is untyped
    """Celery's `AsyncResult`, but silent when it is discarded while its backend is unavailable.

    `key` is the idempotency key that the command was sent with.
    """

    key = ""

    def __del__(self) -> None:
        """Stop listening for the answer."""
        with suppress(Exception):
            super().__del__()


@dataclass(frozen=True)
class Outcome:
    """The outcome of one of many commands: a result, or an error."""

    key: str  # its idempotency key
    command: Command
    result: Any = None
    error: Exception | None = None


@dataclass(frozen=True)
class Told:
    """What a message with many commands was answered: a line for each of them, or an error for all."""

    #: {"id": key, "result"} or {"id": key, "error": {"type", "message"}}; "recorded": false where it was not
    lines: Sequence[Mapping[str, Any]] = ()
    error: Mapping[str, str] | None = None  # {"type", "message"}

    @property
    def recorded(self) -> bool:
        """Return whether a copy of the message would be told the same; else it may yet be carried out."""
        return all(line.get("recorded", True) for line in self.lines)

    @classmethod
    def of(cls, meta: Mapping[str, Any]) -> Self | None:
        """Read what Celery stored of a task; None while it has not ended."""
        state = meta.get("status")
        result: Any = meta.get("result")
        if state == states.SUCCESS:
            if isinstance(result, list) and all(isinstance(line, dict) and "id" in line for line in result):
                return cls(lines=result)
            return cls(error={"type": "UnreadableAnswer", "message": cut(repr(result))})
        if state not in states.PROPAGATE_STATES:
            return None
        if isinstance(result, BaseException):  # a backend that rebuilds it
            return cls(error={"type": type(result).__name__, "message": str(result)})
        texts = result.get("exc_message") or ""
        text = texts if isinstance(texts, str) else str(next(iter(texts), ""))
        return cls(error={"type": str(result.get("exc_type")), "message": text})


def send_again(key: str) -> str:
    """Say how to send a command again; with any other key it could be carried out twice."""
    named = f"the idempotency key {key!r}" if key else "its idempotency key"
    return f"send it again with {named}"


def declared_errors(refusals: Iterable[type[Exception]]) -> dict[str, type[Exception]]:
    """Return the errors that a sender is told, by name: those of every project, and a project's own."""
    found: list[type[Exception]] = [
        kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, MessagingError)
    ]
    found.remove(errors.RetryAfter)  # for event handlers; it is not made of its text
    return {kind.__name__: kind for kind in (*found, *refusals)}
