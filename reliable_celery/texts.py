"""Make text of unknown origin storable."""

from __future__ import annotations


def storable(text: str) -> str:
    """Return a text that any store accepts: without NUL and lone surrogates."""
    return text.replace("\x00", "\\x00").encode("utf-8", "backslashreplace").decode()
