"""Statements on whatever the caller has: a SQLAlchemy session or connection, Django's, or a driver's own.

None of these libraries is imported: what is handed over is recognized by what it can do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import count
from typing import Any, Protocol

from messaging.client.dialects import Dialect, dialect_named, dialect_of_driver

Row = Sequence[Any]

#: A bit of what a MySQL server says about a connection.
IN_TRANSACTION = 1


class NoTransaction(RuntimeError):
    """The connection is in no transaction, so a command would be sent whatever comes of the caller's work."""


class Statements(Protocol):
    """Runs statements, written with `%s` for each value, in the caller's transaction."""

    @property
    def dialect(self) -> Dialect:
        """Return the kind of database."""

    def read(self, sql: str, values: Sequence[object] = ()) -> list[Row]:
        """Return the rows of a SELECT."""

    def write(self, sql: str, values: Sequence[object] = ()) -> int:
        """Return how many rows a statement changed."""


def statements(target: Any, dialect: str | None = None) -> Statements:
    """Return how to run statements on a session or a connection; `dialect` names the database if need be.

    Raises:
        TypeError: it is neither, or its driver is not known.
    """
    target = _connection_of(target)
    if hasattr(target, "exec_driver_sql"):  # SQLAlchemy's Connection
        return _OnSqlAlchemy(target, dialect_named(dialect or target.dialect.name))
    if hasattr(target, "vendor"):  # Django's connection
        return _OnCursor(target, dialect_named(dialect or target.vendor), "%s")
    known = dialect_named(dialect) if dialect else dialect_of_driver(target)
    return _OnCursor(target, known, "?" if known.name == "sqlite" else "%s")


def check_transaction(target: Any) -> None:
    """Refuse a connection of which is known that each statement commits at once.

    Raises:
        NoTransaction: it is such a one.
    """
    if hasattr(target, "vendor"):  # Django's connection
        if not getattr(target, "in_atomic_block", True):
            raise NoTransaction("send within `with transaction.atomic():`, together with what it belongs to")
        return
    target = _connection_of(target)
    if hasattr(target, "exec_driver_sql"):  # SQLAlchemy's Connection
        target = target.connection.dbapi_connection
    if _commits_each_statement(target):
        raise NoTransaction("the connection commits each statement at once: switch its autocommit off")


def _connection_of(target: Any) -> Any:
    """Return the connection of SQLAlchemy's Session; anything else as it is."""
    is_session = hasattr(target, "get_bind") and hasattr(target, "connection")
    return target.connection() if is_session else target


def _commits_each_statement(connection: Any) -> bool:
    """Tell whether a driver's connection does, unless it knows of a transaction that was begun by hand."""
    within = getattr(connection, "in_transaction", None)  # sqlite3
    if within or getattr(connection, "server_status", 0) & IN_TRANSACTION:  # PyMySQL
        return False
    if hasattr(connection, "get_autocommit"):  # PyMySQL and mysqlclient, where `autocommit` is a method
        return bool(connection.get_autocommit())
    if within is False and getattr(connection, "isolation_level", "") is None:  # sqlite3
        return True
    return getattr(connection, "autocommit", False) is True


@dataclass(frozen=True)
class _OnCursor:
    """A DB-API connection, or Django's."""

    connection: Any
    dialect: Dialect
    placeholder: str

    def read(self, sql: str, values: Sequence[object] = ()) -> list[Row]:
        with closing(self.connection.cursor()) as cursor:
            cursor.execute(self._text(sql), tuple(values))
            rows = cursor.fetchall()
            # A connection of the app's may return its rows as dictionaries.
            return [tuple(row.values()) if isinstance(row, Mapping) else row for row in rows]

    def write(self, sql: str, values: Sequence[object] = ()) -> int:
        with closing(self.connection.cursor()) as cursor:
            cursor.execute(self._text(sql), tuple(values))
            changed: int = cursor.rowcount
            return changed

    def _text(self, sql: str) -> str:
        return sql.replace("%s", self.placeholder)


@dataclass(frozen=True)
class _OnSqlAlchemy:
    connection: Any
    dialect: Dialect

    def read(self, sql: str, values: Sequence[object] = ()) -> list[Row]:
        return list(self._run(sql, values).fetchall())

    def write(self, sql: str, values: Sequence[object] = ()) -> int:
        changed: int = self._run(sql, values).rowcount
        return changed

    def _run(self, sql: str, values: Sequence[object]) -> Any:
        return self.connection.exec_driver_sql(self._text(sql), tuple(values))

    def _text(self, sql: str) -> str:
        """Write the placeholders as the driver wants them."""
        style = self.connection.dialect.paramstyle
        if style == "qmark":
            return sql.replace("%s", "?")
        if style == "numeric_dollar":
            parts, numbers = sql.split("%s"), count(1)
            return parts[0] + "".join(f"${next(numbers)}{part}" for part in parts[1:])
        return sql
