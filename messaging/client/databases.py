"""The relay's transactions on the caller's database, one way for each library that the caller may use."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any, Protocol


class Database(Protocol):
    """Where the relay finds the table."""

    def transaction(self) -> AbstractContextManager[Any]:
        """Begin a transaction, committed at the end of the block; yield what `outbox.send` would take."""

    def close(self) -> None:
        """Close the connection; the next transaction opens another."""


class SqlAlchemyDatabase:
    """By SQLAlchemy: handlers of answers get a `Session`."""

    def __init__(self, engine_or_url: Any) -> None:
        """Take an engine or its address; nothing is connected yet."""
        from sqlalchemy import create_engine

        self._engine = create_engine(engine_or_url) if isinstance(engine_or_url, str) else engine_or_url

    @contextmanager
    def transaction(self) -> Iterator[Any]:
        """Begin."""
        from sqlalchemy.orm import Session

        with Session(self._engine) as session, session.begin():
            yield session

    def close(self) -> None:
        """Close."""
        self._engine.dispose()


class DjangoDatabase:
    """By Django: handlers use their models as always, and get Django's connection too."""

    def __init__(self, using: str = "default") -> None:
        """Take the alias of a database in Django's settings."""
        self._using = using

    @contextmanager
    def transaction(self) -> Iterator[Any]:
        """Begin."""
        from django.db import connections, transaction

        with transaction.atomic(using=self._using):
            yield connections[self._using]

    def close(self) -> None:
        """Close."""
        from django.db import connections

        connections[self._using].close()


class DriverDatabase:
    """By a driver alone: `connect` returns a DB-API connection, which handlers get."""

    def __init__(self, connect: Callable[[], Any]) -> None:
        """Nothing is connected yet."""
        self._connect = connect
        self._connection: Any = None

    @contextmanager
    def transaction(self) -> Iterator[Any]:
        """Begin."""
        if self._connection is None:
            self._connection = self._connect()
        connection = self._connection
        try:
            # sqlite3, whatever its isolation level. mysql.connector has the first attribute too.
            if not getattr(connection, "in_transaction", True) and hasattr(connection, "isolation_level"):
                connection.execute("BEGIN IMMEDIATE")
            yield connection
            connection.commit()
        except BaseException:
            with suppress(Exception):
                connection.rollback()
            raise

    def close(self) -> None:
        """Close."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(Exception):
                connection.close()
