"""Compressed bodies are refused: kombu would unpack one before anybody could look at its size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def refuse_compression(headers: Mapping[str, Any] | None) -> None:
    """Raise ValueError where the headers of a message say that its body is compressed."""
    if (headers or {}).get("compression"):
        raise ValueError("compressed bodies are refused: a small one can fill the memory")
