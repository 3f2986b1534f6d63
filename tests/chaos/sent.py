"""A sender's record of each message, its commands, and their answers."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Sent:
    """One command in one message, and the answer to it."""

    task: str
    fields: dict[str, Any]
    given_key: str | None = None  # None: a plain sender
    after: Sent | None = None  # the answered command with the same key
    impatient: bool = False  # its sender waits only briefly and sends again
    id: str = ""
    key: str = ""  # its idempotency key
    message: Message = field(init=False, repr=False)
    status: str = ""
    result: Any = None  # the result, or Celery's description of the error

    @property
    def error(self) -> str:
        """Return the error's class name, or an empty text."""
        return "" if self.status in ("", "SUCCESS") else str(self.result["exc_type"])

    @property
    def text(self) -> str:
        """Return the error's text."""
        return " ".join(map(str, self.result["exc_message"])) if self.error else ""

    @property
    def told(self) -> str:
        """Return the answer in readable form."""
        return f"{self.error}: {self.text}" if self.error else f"{self.status} {self.result!r}"

    @property
    def answered(self) -> bool:
        """Return whether its sender got an answer."""
        return bool(self.status)

    @property
    def repeats(self) -> bool:
        """Return whether it equals the earlier command with its key."""
        return self.after is not None and (self.task, self.fields) == (self.after.task, self.after.fields)

    def __str__(self) -> str:
        """Return its description in a report."""
        expires = f", expires after {self.message.expires_s} s" if self.message.expires_s is not None else ""
        return f"{self.id} key {self.key}{expires}: {self.task} {self.fields}"


@dataclass
class Message:
    """One message on the broker: a command, or a list of them for `allocation.many`."""

    id: str
    commands: list[Sent]
    many: bool = False
    given_key: str | None = None  # the header
    expires_s: float | None = None
    first_sent_at: float = field(default_factory=time.monotonic)
    sent_at: float = 0.0  # the last time
    answered_at: float | None = None
    times: int = 0
    timed_out: int = 0  # how often its sender gave up waiting
    on_broker: bool = False  # the broker has confirmed it
    in_hand: bool = False  # it is being sent, or is about to be
    replaced: bool = False  # its sender waits for another message with the same key

    def __post_init__(self) -> None:
        """Set its commands' ids and keys as the worker will."""
        for position, one in enumerate(self.commands):
            one.message = self
            one.id = f"{self.id}.{position}" if self.many else self.id
            own = f"{self.given_key}.{position}" if self.given_key and self.many else self.given_key
            one.key = one.given_key or own or one.id

    def take(self, status: str, result: Any) -> None:
        """Record the sender's answer."""
        for one, (state, value) in zip(self.commands, self._answers(status, result), strict=True):
            one.status, one.result = state, value
        self.answered_at = time.monotonic()

    def _answers(self, status: str, result: Any) -> list[tuple[str, Any]]:
        if not self.many or status != "SUCCESS":
            return [(status, result)] * len(self.commands)
        return [_outcome(outcome) for outcome in result]

    def changes(self, status: str, result: Any) -> list[tuple[Sent, Any]]:
        """Return the commands whose stored answer differs from their sender's."""
        stored = self._answers(status, result)
        return [
            (one, answer[1])
            for one, answer in zip(self.commands, stored, strict=True)
            if answer != (one.status, one.result)
        ]


def _outcome(outcome: dict[str, Any]) -> tuple[str, Any]:
    """Return one of many outcomes in the form of a single answer."""
    if "error" not in outcome:
        return "SUCCESS", outcome["result"]
    error = outcome["error"]
    return "FAILURE", {"exc_type": error["type"], "exc_message": [error["message"]]}
