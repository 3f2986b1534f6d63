"""Text of unknown origin, made fit to be stored."""

from __future__ import annotations


def storable(text: str) -> str:
    """Return a text that any store takes: without NUL and halves of surrogate pairs."""
    return text.replace("\x00", "\\x00").encode("utf-8", "backslashreplace").decode()
