"""Dead letters: the record of a message that no task can run, and the port of the stores that keep them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol


@dataclass(frozen=True)
class DeadLetter:
    """A message that no task can run, as it was received, and the reason."""

    reason: str  # a short fixed text to group by: "unknown task", "undecodable body", …
    error: str  # what is wrong with this message
    body: bytes = b""  # as received, after the transport's decoding
    task: str | None = None
    task_id: str | None = None
    queue: str | None = None
    content_type: str | None = None
    content_encoding: str | None = None
    headers: Mapping[str, Any] = field(default_factory=dict)  # plain JSON values
    properties: Mapping[str, Any] = field(default_factory=dict)  # plain JSON values


class DeadLetterStore(Protocol):
    """A store for dead letters."""

    def add(self, letter: DeadLetter) -> None:
        """Store `letter` durably before returning; raise if that fails."""
        ...
