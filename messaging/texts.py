"""Text that came from elsewhere, made fit for a text column."""

from __future__ import annotations


def storable(text: str) -> str:
    """Return `text` with what PostgreSQL refuses written as an escape: NUL, and halves of surrogate pairs."""
    return text.replace("\x00", "\\x00").encode("utf-8", "backslashreplace").decode()
