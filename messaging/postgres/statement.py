"""Prepared statements: planning the same few statements each time costs more than running them."""

from __future__ import annotations

import hashlib
from typing import Any, Protocol


class Cursor(Protocol):
    """The part of psycopg2's cursor that is used here."""

    def execute(self, sql: str) -> object:
        """Run SQL."""

    def mogrify(self, sql: str, params: Any) -> bytes:
        """Put parameters into SQL."""
        ...


class Statement:
    """One statement with `$1`, `$2`, … and their types, prepared once per connection."""

    def __init__(self, sql: str, *types: str) -> None:
        # Named by its text, so that another release's statement on the same connection has another name.
        digest = hashlib.sha1(f"{types}{sql}".encode(), usedforsecurity=False).hexdigest()
        self.name = f"bus_{digest[:16]}"
        self._prepare = f"PREPARE {self.name} ({', '.join(types)}) AS {sql}"
        self._execute = f"EXECUTE {self.name} ({', '.join(['%s'] * len(types))})"

    def bind(self, cursor: Cursor, prepared: set[str], params: tuple[Any, ...]) -> bytes:
        """Return the call with these parameters; `prepared` names the statements that this connection has."""
        if self.name not in prepared:
            cursor.execute(self._prepare)
            prepared.add(self.name)
        return cursor.mogrify(self._execute, params)
