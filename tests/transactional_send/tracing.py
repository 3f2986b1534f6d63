"""Connections of two drivers that end this process by SIGKILL between two statements that are named.

A point is a place between two statements; a message that is published, and a look for answers, are statements
too. Each process notes the points that it passes in a file, and the point at which it was killed in another.
"""

from __future__ import annotations

import os
import re
import signal
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg2
from psycopg2 import extensions

from messaging.client.dialects import POSTGRESQL, SQLITE


@dataclass
class Trace:
    """The statements of this process; `kill_at` is the point at which it ends."""

    role: str
    folder: Path
    kill_at: str | None = None
    _previous: str = "start"
    _passed: set[str] = field(default_factory=set)

    def before(self, statement: str) -> None:
        """Pass the point between the statement before and this one."""
        name = f"{statement} after {self._previous}" if statement in _ENDS else named(statement)
        point = f"{self.role}: {self._previous} > {name}"
        if point not in self._passed:
            self._passed.add(point)
            append(self.folder / "passed", point)
        if point == self.kill_at:
            append(self.folder / "killed", point)
            os.kill(os.getpid(), signal.SIGKILL)
        self._previous = name

    def around(self, what: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that counts as a statement of this name."""

        def traced(*arguments: Any) -> Any:
            self.before(what)
            return function(*arguments)

        return traced


#: Alone they would all be the same.
_ENDS = ("COMMIT", "ROLLBACK")
_NOWS = (POSTGRESQL.now, SQLITE.now)


def append(file: Path, line: str) -> None:
    """Add a line in one write, which a SIGKILL afterwards cannot take back."""
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        os.write(descriptor, f"{line}\n".encode())
    finally:
        os.close(descriptor)


def lines(file: Path) -> set[str]:
    """Return the lines of such a file."""
    return set(file.read_text().splitlines()) if file.exists() else set()


def named(statement: str) -> str:
    """Return a statement without what differs from run to run: how many values it has."""
    text = " ".join(statement.split())
    for now in _NOWS:
        text = text.replace(now, "NOW")
    text = re.sub(r"IN \((\?|%s)(, (\?|%s))*\)", "IN (…)", text)
    return re.sub(r"(WHEN (\?|%s) THEN (\?|%s) ?)+", "WHEN … ", text)


class SqliteCursor(sqlite3.Cursor):
    """Traced."""

    connection: SqliteConnection

    def execute(self, sql: str, parameters: Any = ()) -> sqlite3.Cursor:
        """Run."""
        self.connection.trace.before(sql)
        return super().execute(sql, parameters)


class SqliteConnection(sqlite3.Connection):
    """Traced."""

    trace: Trace

    def cursor(self, factory: Any = SqliteCursor) -> Any:
        """Return a cursor."""
        return super().cursor(factory)

    def execute(self, sql: str, parameters: Any = ()) -> sqlite3.Cursor:
        """Run."""
        done: sqlite3.Cursor = self.cursor().execute(sql, parameters)
        return done

    def commit(self) -> None:
        """Commit."""
        self.trace.before("COMMIT")
        super().commit()

    def rollback(self) -> None:
        """Roll back."""
        self.trace.before("ROLLBACK")
        super().rollback()


class PostgresCursor(extensions.cursor):
    """Traced."""

    connection: PostgresConnection

    def execute(self, query: Any, vars: Sequence[Any] | None = None) -> None:  # type: ignore[override]  # noqa: A002
        """Run."""
        self.connection.trace.before(str(query))
        super().execute(query, vars)


class PostgresConnection(extensions.connection):
    """Traced."""

    trace: Trace

    def commit(self) -> None:
        """Commit."""
        self.trace.before("COMMIT")
        super().commit()

    def rollback(self) -> None:
        """Roll back."""
        self.trace.before("ROLLBACK")
        super().rollback()


def connect(url: str, trace: Trace) -> Any:
    """Return a traced connection to a SQLite file, or to a PostgreSQL at `postgresql://…`."""
    connection: Any
    if url.startswith("postgresql:"):
        connection = psycopg2.connect(
            url, connection_factory=PostgresConnection, cursor_factory=PostgresCursor
        )
    else:
        connection = sqlite3.connect(url, factory=SqliteConnection, timeout=30)
    connection.trace = trace
    return connection
