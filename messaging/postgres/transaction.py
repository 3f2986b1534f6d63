"""One PostgreSQL transaction in as few round trips as possible: one to read, one to write and commit."""

from __future__ import annotations

import hashlib
import re
from types import TracebackType
from typing import Any, Self

import psycopg2
import psycopg2.errors
import sqlalchemy.exc
from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.pool import PoolProxiedConnection

from messaging.postgres.commits import raise_if_in_doubt

Row = tuple[Any, ...]
Params = tuple[Any, ...] | dict[str, Any]

#: Errors of the driver and the pool when the database refuses, fails or is unavailable.
DATABASE_ERRORS = (psycopg2.Error, SQLAlchemyError)

#: The connection has lost its prepared statements, or a migration changed the columns that one returns:
#: a new connection prepares them anew.
STALE_PLANS = (psycopg2.errors.InvalidSqlStatementName, psycopg2.errors.FeatureNotSupported)

#: Waits that timed out: an immediate retry would only wait again.
WAITED_TOO_LONG = (psycopg2.errors.LockNotAvailable, psycopg2.errors.QueryCanceled)

#: Errors that a retry may solve: connections, deadlocks and serialization failures, a standby that is still
#: read-only, and a row that another transaction inserted first.
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


PARAMETER = re.compile(r"\$(\d+)")
#: A connection's statements that begin each transaction, where sessions are shared: it must prepare none.
EACH_TRANSACTION = "each_transaction"


class Statement:
    """One statement with `$1`, `$2`, … and their types, prepared once per connection.

    Planning the same few statements each time costs more than running them (docs/adr/010).
    """

    def __init__(self, sql: str, *types: str) -> None:
        # Named by its text, so that another release's statement on the same connection has another name.
        digest = hashlib.sha1(f"{types}{sql}".encode(), usedforsecurity=False).hexdigest()
        self.name = f"bus_{digest[:16]}"
        self._prepare = f"PREPARE {self.name} ({', '.join(types)}) AS {sql}"
        self._execute = f"EXECUTE {self.name} ({', '.join(['%s'] * len(types))})"
        self._unprepared = PARAMETER.sub(
            lambda found: f"CAST(%(p{found[1]})s AS {types[int(found[1]) - 1]})", sql.replace("%", "%%")
        )

    def bind(self, cursor: Any, prepared: set[str], params: tuple[Any, ...]) -> bytes:
        """Return the call with these parameters; `prepared` names the statements that this connection has."""
        if self.name not in prepared:
            cursor.execute(self._prepare)
            prepared.add(self.name)
        bound: bytes = cursor.mogrify(self._execute, params)
        return bound

    def bind_unprepared(self, cursor: Any, params: tuple[Any, ...]) -> bytes:
        """Return the statement itself with these parameters."""
        named = {f"p{number}": value for number, value in enumerate(params, 1)}
        bound: bytes = cursor.mogrify(self._unprepared, named)
        return bound


class Transaction:
    """Sends BEGIN with the first statement and COMMIT with the last ones.

    `BEGIN; …` in one message saves a round trip over the driver's own transactions, hence its autocommit
    mode. In READ COMMITTED each statement of such a message sees everything committed before it started, so
    rows read after `SELECT … FOR UPDATE` in the same `read` are as fresh as the lock. A lock that finds no
    row locks nothing, and the next statement may see a row inserted in between: such a read must use the
    locked rows (docs/adr/003).
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._connection: PoolProxiedConnection | None = None
        self._cursor: Any = None
        self._prepared: set[str] = set()
        self._begin: list[bytes] = []
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
        """Roll back uncommitted changes and return the connection."""
        self.close()

    @property
    def shares_sessions(self) -> bool:
        """Return whether a pooler gives each transaction whichever session is free."""
        return len(self._begin) > 1

    def open(self) -> None:
        """Take a connection from the pool.

        Raises:
            RuntimeError: it is already open; a second connection would wait for the first one's locks.
        """
        if self._connection is not None:
            raise RuntimeError(
                "The unit of work is already open: the bus enters and commits it, a handler only uses it"
            )
        self._connection = self._engine.raw_connection()
        self._connection.driver_connection.autocommit = True  # type: ignore[union-attr]  # psycopg2's
        self._cursor = self._connection.cursor()
        # The pool drops `info` together with the connection.
        self._prepared = self._connection.info.setdefault("prepared", set())
        limits = self._connection.info.get(EACH_TRANSACTION)
        self._begin = [b"BEGIN", limits] if limits else [b"BEGIN"]
        self._begun, self._can_undo, self._pending = False, False, []

    def read(self, sql: str | Statement, params: Params = ()) -> list[Row]:
        """Run one or more statements and return the rows of the last; earlier `write`s run first."""
        self._send(self._bound(sql, params))
        return self._cursor.fetchall()  # type: ignore[no-any-return]

    def read_before(self, _sql: Statement, _params: Params) -> list[Row] | None:
        """Return the rows of a read that was done ahead, with its locks, once; None if it has to be done."""
        return None

    def write(self, sql: str | Statement, params: Params = ()) -> None:
        """Queue a statement for the next `read` or the commit."""
        self._pending.append(self._bound(sql, params))

    def savepoint(self) -> None:
        """Set the savepoint that `undo` returns to."""
        self._pending.append(SAVEPOINT)
        self._can_undo = True

    def undo(self) -> None:
        """Undo everything since `savepoint`; earlier locks stay."""
        while self._pending:
            if self._pending.pop() == SAVEPOINT:
                return
        self._pending = [UNDO]

    def release(self) -> None:
        """Release the savepoint, if there is one.

        A later write to a row that was locked before the savepoint then needs no list of lockers (a
        multixact), which PostgreSQL keeps on disk.
        """
        if self._can_undo:
            self._pending.append(RELEASE)
        self._can_undo = False

    def commit(self) -> None:
        """Run the queued statements and commit.

        Raises:
            CommitInDoubt: committed, but the wait for a synchronous standby may have been cancelled.
        """
        if self._begun or self._pending:
            notices = self._connection.driver_connection.notices  # type: ignore[union-attr]  # psycopg2's
            notices.clear()
            self._send(b"COMMIT")
            self._begun = False
            raise_if_in_doubt(notices)
        self._begun = False

    def close(self) -> None:
        """Roll back and return the connection to the pool; a broken one is discarded."""
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
            self._discard(connection)

    def _bound(self, sql: str | Statement, params: Params) -> bytes:
        if isinstance(sql, Statement):
            if self.shares_sessions:
                return sql.bind_unprepared(self._cursor, tuple(params))
            return sql.bind(self._cursor, self._prepared, tuple(params))
        bound: bytes = self._cursor.mogrify(sql, params)
        return bound

    def _send(self, statement: bytes) -> None:
        begin = [] if self._begun else self._begin
        statements, self._pending = [*begin, *self._pending, statement], []
        self._begun = True
        try:
            self._cursor.execute(b"; ".join(statements))
        except (psycopg2.errors.ReadOnlySqlTransaction, *STALE_PLANS):
            # After a failover this session stays read-only for ever; the next attempt gets a new one.
            self._throw_away()
            raise

    def _throw_away(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            self._discard(connection)

    def _discard(self, connection: PoolProxiedConnection) -> None:
        """Discard a broken connection, and have the pool replace those that are as old when they are used.

        Else each attempt could get another broken one. SQLAlchemy does the same where it sees the error.
        """
        self._engine.pool._invalidate(connection)
