"""One event for one handler: what is owed, to whom, and how it stands."""

from __future__ import annotations

import os
import time
import uuid
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Self

from messaging.errors import describe
from messaging.texts import trace


class Status(StrEnum):
    """pending → done | failed; failed → pending (re-run) | discarded (operator)."""

    PENDING = "pending"
    DONE = "done"
    FAILED = "failed"
    DISCARDED = "discarded"


@dataclass(frozen=True)
class Delivery:
    """What a message to an event handler's task needs; `id` is the task id as well."""

    id: str
    event_type: str
    payload: dict[str, Any]  # the event's fields as JSON values
    handler: str
    correlation_id: str  # the command that began it all
    causation_id: str  # the command or delivery that raised the event
    attempts: int = 0  # of this run
    run: int = 0  # how often it was re-run


@dataclass(frozen=True)
class Failure:
    """What is kept of an attempt that failed."""

    worker: str
    error: str
    traceback: str

    @classmethod
    def of(cls, worker: str, error: BaseException) -> Self:
        """Describe an error, whatever it is."""
        return cls(worker, describe(error), trace(error))


def new_id() -> str:
    """Return a UUID of version 7: unique, and in the order of time, which keeps indexes dense.

    Source: RFC 9562, section 5.7.
    """
    milliseconds = time.time_ns() // 1_000_000
    number = (milliseconds << 80) | int.from_bytes(os.urandom(10))
    number = (number & ~(0xF << 76)) | (7 << 76)
    number = (number & ~(0x3 << 62)) | (2 << 62)
    return str(uuid.UUID(int=number))
