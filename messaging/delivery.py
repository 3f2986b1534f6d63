"""A delivery: one event for one handler, and its state."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import Any, Self

from messaging.errors import describe
from messaging.fingerprints import fingerprint
from messaging.messages import Event
from messaging.texts import trace


class Status(StrEnum):
    """pending → done | failed | waiting → pending; failed → pending (re-run) | discarded (operator)."""

    PENDING = "pending"
    WAITING = "waiting"
    DONE = "done"
    FAILED = "failed"
    DISCARDED = "discarded"


class Waits(StrEnum):
    """What a waiting delivery waits for; docs/adr/023 says what ends each wait."""

    PAUSE = "pause"
    ORDER = "order"
    BREAKER = "breaker"
    PLACE = "place"
    RATE = "rate"
    TIME = "time"
    TURN = "turn"


@dataclass(frozen=True)
class Delivery:
    """One row of the outbox; fields that a new row does not have yet are left at their defaults.

    Its `id` is the task id of all its messages.
    """

    id: str
    event_type: str
    payload: dict[str, Any]  # the event's fields as JSON values
    handler: str
    correlation_id: str  # the original command
    causation_id: str  # the command or delivery that raised the event
    attempts: int = 0  # since the last re-run
    reruns: int = 0
    status: Status = Status.PENDING
    created_at: datetime | None = None
    finished_at: datetime | None = None
    due_at: datetime | None = None
    worker: str | None = None
    last_error: str | None = None
    edited_from: str | None = None
    reason: str | None = None
    waits_for: str | None = None
    limit_key: str | None = None  # whose place it waits for
    wait_s: float = 0.0  # seconds before its message may be taken
    traceparent: str | None = None  # the trace that its event was raised in
    #: The event itself, if it was raised in this process.
    event: Event | None = field(default=None, repr=False, compare=False)

    @classmethod
    def to_send(cls, row: Sequence[Any]) -> Self:
        """Return a delivery that is to be sent: its first fields, and the trace."""
        *facts, traceparent = row
        return replace(cls(*facts), traceparent=traceparent)


@dataclass(frozen=True)
class Failure:
    """The record of a failed attempt."""

    worker: str
    error: str
    traceback: str
    fingerprint: str | None = None

    @classmethod
    def of(cls, worker: str, error: BaseException) -> Self:
        """Describe any error."""
        return cls(worker, describe(error), trace(error), fingerprint(error))


def new_id() -> str:
    """Return a UUID of version 7: unique and ordered by time, which keeps indexes dense.

    Source: RFC 9562, section 5.7.
    """
    milliseconds = time.time_ns() // 1_000_000
    number = (milliseconds << 80) | int.from_bytes(os.urandom(10))
    number = (number & ~(0xF << 76)) | (7 << 76)
    number = (number & ~(0x3 << 62)) | (2 << 62)
    return str(uuid.UUID(int=number))
