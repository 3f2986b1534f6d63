"""SQL as a story shows it, and the single statements of a message with several."""

from __future__ import annotations

import re
import sys
from functools import cache

from messaging.postgres.transaction import Statement

#: A text, a quoted name, or the end of a statement.
_PART = re.compile(r"[eE]'(?:[^'\\]|\\.|'')*'|'(?:[^']|'')*'|\"[^\"]*\"|;", re.DOTALL)
_PREPARED = re.compile(r"EXECUTE (bus_\w+) ")
_WORDS = re.compile(r"\s+")
SHOWN = 90


def split(message: str) -> list[str]:
    """Return the statements of a message, which the server runs one after the other."""
    ends = [found.start() for found in _PART.finditer(message) if found.group() == ";"]
    starts = [0, *(end + 1 for end in ends)]
    parts = [message[start:end].strip() for start, end in zip(starts, [*ends, len(message)], strict=True)]
    return [part for part in parts if part]


def shown(statement: str) -> str:
    """Return a statement in one short line, a prepared one by the name that it has in the code."""
    found = _PREPARED.match(statement)
    if found:
        values = statement[found.end() :]
        return f"{names().get(found.group(1), found.group(1))}{values}"[:SHOWN]
    words = _WORDS.sub(" ", statement).strip()
    table = re.search(r"(?:FROM|INTO|UPDATE) (\w+)", words)
    if len(words) > SHOWN and table and not words.startswith(("INSERT", "DELETE", "UPDATE", "SELECT")):
        verb = re.search(r"\b(UPDATE|INSERT|DELETE|SELECT)\b(?! id FROM)", words)
        return f"{verb.group(1) if verb else ''} … {table.group(1)} … {words[:50]}"
    return words[:SHOWN]


@cache
def names() -> dict[str, str]:
    """Return the names of prepared statements, by the names that the server knows."""
    modules = [
        module for name, module in sorted(sys.modules.items()) if name.startswith(("messaging", "allocation"))
    ]
    return {
        value.name: name
        for module in modules
        for name, value in vars(module).items()
        if isinstance(value, Statement)
    }
