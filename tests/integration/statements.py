"""Record the statements that an app sends to its database."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg2.extensions
from sqlalchemy import event

from messaging.worker.app import MessagingApp
from tests.simulation.sql import names, split


@contextmanager
def recorded(app: MessagingApp) -> Iterator[list[list[str]]]:
    """Yield a list that gets each message to the database: its statements, prepared ones by their names."""
    messages: list[list[str]] = []

    class Cursor(psycopg2.extensions.cursor):
        def execute(self, query: Any, vars: Any = None) -> None:  # noqa: A002  psycopg2's name
            try:
                super().execute(query, vars)
            finally:
                sent = self.query.decode() if self.query else ""
                if not sent.startswith("PREPARE"):
                    messages.append([_named(one) for one in split(sent)])

    def connect(_dialect: Any, _record: Any, _args: Any, options: dict[str, Any]) -> None:
        options["cursor_factory"] = Cursor

    engine = app.runtime.engine
    engine.dispose()
    event.listen(engine, "do_connect", connect)
    with engine.connect():
        messages.clear()
    yield messages
    event.remove(engine, "do_connect", connect)
    engine.dispose()


def _named(statement: str) -> str:
    found = re.match(r"EXECUTE (bus_\w+)", statement)
    return names()[found[1]] if found else " ".join(statement.split())
