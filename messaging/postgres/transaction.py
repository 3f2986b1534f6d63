"""One PostgreSQL transaction in as few round trips as it can be: one to read, one to write and commit."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

import psycopg2
import psycopg2.errors
import sqlalchemy.exc
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import PoolProxiedConnection

from messaging.postgres.statement import Statement

Row = tuple[Any, ...]
Params = tuple[Any, ...] | dict[str, Any]

#: What the driver and the pool raise when the database refuses, fails or is away.
DATABASE_ERRORS = (psycopg2.Error, SQLAlchemyError)

#: The connection no longer knows what was prepared on it, or a migration changed what a plan returns:
#: a new connection plans anew.
STALE_PLANS = (psycopg2.errors.InvalidSqlStatementName, psycopg2.errors.FeatureNotSupported)

#: Waits that were cut short: trying at once again would only wait again.
WAITED_TOO_LONG = (psycopg2.errors.LockNotAvailable, psycopg2.errors.QueryCanceled)

#: Trouble that may be over at the next try: connections, deadlocks and serialization failures, a standby
#: that is read-only yet, and a row that another transaction inserted first.
TRANSIENT_ERRORS = (
    *STALE_PLANS,
    psycopg2.OperationalError,
    psycopg2.InterfaceError,
    psycopg2.errors.ReadOnlySqlTransaction,
    psycopg2.errors.UniqueViolation,
    sqlalchemy.exc.OperationalError,
    sqlalchemy.exc.InterfaceError,
    sqlalchemy.exc.TimeoutError,
)


SAVEPOINT = b"SAVEPOINT undo"
UNDO = b"ROLLBACK TO SAVEPOINT undo"
RELEASE = b"RELEASE SAVEPOINT undo"


class CommitInDoubt(psycopg2.OperationalError):
    """The server committed, but said something about it: a standby may not have it yet."""


class Transaction:
    """Sends BEGIN with the first statement and COMMIT with the last ones.

    `BEGIN; …` in one message saves a round trip over the driver's own transactions, hence its autocommit
    mode. In READ COMMITTED each statement of such a message sees what was committed before it began, so what
    is read after `SELECT … FOR UPDATE` in the same `read` is as fresh as the lock. A lock that finds no row
    locks nothing, and the next statement may see a row that was inserted in between: such a read must ask for
    what was locked (docs/adr/003).
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._connection: PoolProxiedConnection | None = None
        self._cursor: Any = None
        self._prepared: set[str] = set()
        self._begun = False
        self._can_undo = False
        self._pending: list[bytes] = []

    def __enter__(self) -> Self:
        """Take a connection from the pool."""
        self.open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Undo what is not committed and give the connection back."""
        self.close()

    def open(self) -> None:
        """Take a connection from the pool.

        Raises:
            RuntimeError: it is open already; another connection would wait for the locks of the first.
        """
        if self._connection is not None:
            raise RuntimeError(
                "The unit of work is open: the bus enters and commits it, a handler only uses it"
            )
        self._connection = self._engine.raw_connection()
        self._connection.driver_connection.autocommit = True  # type: ignore[union-attr]  # psycopg2's
        self._cursor = self._connection.cursor()
        # The pool forgets `info` together with the connection that it tells of.
        self._prepared = self._connection.info.setdefault("prepared", set())
        self._begun, self._can_undo, self._pending = False, False, []

    def read(self, sql: str | Statement, params: Params = ()) -> list[Row]:
        """Run one statement or several and return the rows of the last; earlier `write`s run before it."""
        self._send(self._bound(sql, params))
        return self._cursor.fetchall()  # type: ignore[no-any-return]

    def write(self, sql: str | Statement, params: Params = ()) -> None:
        """Have a statement run at the next `read` or at the commit."""
        self._pending.append(self._bound(sql, params))

    def savepoint(self) -> None:
        """Mark where `undo` goes back to."""
        self._pending.append(SAVEPOINT)
        self._can_undo = True

    def undo(self) -> None:
        """Undo what was run or written since `savepoint`; locks that were taken before it stay."""
        self._pending = [] if SAVEPOINT in self._pending else [UNDO]

    def release(self) -> None:
        """Give up the savepoint, if there is one.

        What is written next to a row that was locked before the savepoint then needs no list of lockers
        (a multixact), which PostgreSQL keeps on disk.
        """
        if self._can_undo:
            self._pending.append(RELEASE)
        self._can_undo = False

    def commit(self) -> None:
        """Run what was written and make all of it permanent.

        Raises:
            CommitInDoubt: committed here, but the wait for a synchronous standby may have been cancelled.
        """
        if self._begun or self._pending:
            notices = self._connection.driver_connection.notices  # type: ignore[union-attr]  # psycopg2's
            notices.clear()
            self._send(b"COMMIT")
            self._begun = False
            if notices:  # a cancelled wait is a warning, in the server's language and without a code
                raise CommitInDoubt(notices[-1].strip())
        self._begun = False

    def close(self) -> None:
        """Undo what is not committed and give the connection back; a broken one is thrown away."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        try:
            if self._begun:
                self._cursor.execute("ROLLBACK")
            self._begun = False
            self._cursor.close()
            connection.driver_connection.autocommit = False  # type: ignore[union-attr]  # psycopg2's
            connection.close()
        except psycopg2.Error:
            connection.invalidate()

    def _bound(self, sql: str | Statement, params: Params) -> bytes:
        if isinstance(sql, Statement):
            return sql.bind(self._cursor, self._prepared, tuple(params))
        bound: bytes = self._cursor.mogrify(sql, params)
        return bound

    def _send(self, statement: bytes) -> None:
        begin = [] if self._begun else [b"BEGIN"]
        statements, self._pending = [*begin, *self._pending, statement], []
        self._begun = True
        try:
            self._cursor.execute(b"; ".join(statements))
        except (psycopg2.errors.ReadOnlySqlTransaction, *STALE_PLANS):
            # After a failover this session stays read-only for ever; the next try takes a new one.
            self._throw_away()
            raise

    def _throw_away(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.invalidate()
