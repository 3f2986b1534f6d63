"""Errors that cross the broker.

A sender without this package sees the class name and `args`; with it, the error is rebuilt as
`cls(*args)`. So each error has one argument: a text that says what is wrong.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime

from messaging.texts import MAX_ERROR, class_name, storable, text_of


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


class RetryAfter(MessagingError):
    """An event's handler raises it to be called again not before a time; that uses up no attempt.

    The sender of a command gets it like any other error.

    The argument is a number of seconds or a time with a time zone, at most a week away: what the header
    `Retry-After` of an HTTP answer with the status 429 or 503 says. Nothing of the handler's work is kept.
    """

    LONGEST_S = 7 * 86400.0

    def __init__(self, when: float | datetime) -> None:
        if isinstance(when, datetime):
            if when.tzinfo is None:
                raise ValueError(f"RetryAfter needs a time with a time zone, not {when!r}")
            wait_s = (when - datetime.now(UTC)).total_seconds()
        else:
            wait_s = float(when)
        if math.isnan(wait_s):
            raise ValueError(f"RetryAfter needs a number of seconds, not {when!r}")
        self.wait_s = min(max(0.0, wait_s), self.LONGEST_S)
        super().__init__(f"not before {self.wait_s:g} s have passed")


def describe(error: BaseException) -> str:
    """Return an error as one line, class and text, safe for a log and a text column."""
    line = " ".join(text_of(error)[:MAX_ERROR].split())
    return storable(f"{class_name(error)}: {line}")[:MAX_ERROR]
