"""Errors that cross the broker.

A sender without this package sees the class name and `args`; with it, the error is rebuilt as
`cls(*args)`. So each error has one argument: a text that says what is wrong.
"""

from __future__ import annotations

from messaging.texts import MAX_ERROR, class_name, storable


class MessagingError(Exception):
    """Something went wrong with a message."""


class InvalidMessage(MessagingError):
    """A message breaks a rule of its contract; `field` names the field, `rule` the rule."""

    def __init__(self, field: str, rule: str = "") -> None:
        text = f"{field} {rule}".rstrip()
        super().__init__(text)
        self.field, _, self.rule = text.partition(" ")


class UnknownMessage(MessagingError):
    """No handler in this project accepts this kind of message."""


class Unavailable(MessagingError):
    """A required service failed in several attempts; the text says what is known."""


class Expired(MessagingError):
    """A command's `expires` had passed before a worker started it; nothing was changed."""


class WorkerCrashed(MessagingError):
    """A message was parked because every worker that started it died."""


class AttemptsUsedUp(MessagingError):
    """A handler failed for the last time; its delivery is failed and waits for a re-run."""


def describe(error: BaseException) -> str:
    """Return an error as one line, class and text, safe for a log and a text column."""
    name = class_name(error)
    try:
        line = " ".join(str(error)[:MAX_ERROR].split())
    except BaseException as unshown:  # noqa: BLE001  an error's __str__ may raise anything
        line = f"its text cannot be shown: {class_name(unshown)}"
    return storable(f"{name}: {line}")[:MAX_ERROR]
