"""The record of a message that no task could read."""

from __future__ import annotations

import base64
import codecs
from dataclasses import dataclass
from datetime import datetime

import reliable_celery.dead_letters

#: The reason of a letter that a worker wrote about a command that it had accepted.
PARKED = "killed its worker"


@dataclass(frozen=True)
class DeadLetter(reliable_celery.dead_letters.DeadLetter):
    """A dead letter as stored; lists leave out body, headers and properties."""

    id: str = ""
    at: datetime | None = None
    replayed_at: datetime | None = None
    discarded_at: datetime | None = None
    discard_reason: str | None = None
    body_bytes: int = 0
    body_head: bytes | None = None  # the beginning of the body
    headers_head: str = ""  # the beginning of the headers' JSON

    @property
    def state(self) -> str:
        """Return `open`, `replayed` or `discarded`."""
        return "discarded" if self.discarded_at else "replayed" if self.replayed_at else "open"

    @property
    def shown_head(self) -> str:
        """Return the beginning of the body, as text if it is text, else in base64."""
        head = self.body_head or b""
        return _shown(head, is_all=self.body_bytes <= len(head))

    @property
    def shown_body(self) -> str:
        """Return the body, as text if it is text, else in base64."""
        return _shown(self.body)


def _shown(body: bytes, *, is_all: bool = True) -> str:
    """Return a body, or its beginning, as text if it is text, else in base64."""
    try:
        return codecs.getincrementaldecoder("utf-8")().decode(body, final=is_all)
    except UnicodeDecodeError:
        return f"base64:{base64.b64encode(body).decode()}"
