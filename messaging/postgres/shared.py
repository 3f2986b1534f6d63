"""One transaction for several units of work, each undone alone if it fails (docs/adr/012)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import psycopg2.errors
from sqlalchemy import Engine

from messaging.messages import Message
from messaging.postgres.transaction import Params, Row, Statement, Transaction

#: A unit of work that waits for a lock keeps what the earlier ones have locked, so it waits this long at
#: most; two groups that wait for each other would otherwise wait for PostgreSQL's deadlock detection.
LOCK_TIMEOUT_MS = 20

#: The first one waits this long at most where others wait for its end: enough for another group to commit.
PATIENCE_MS = 250


@dataclass(frozen=True)
class Read:
    """What a handler's first read would return; its aggregate is locked."""

    statement: Statement
    params: Params
    rows: list[Row]


#: Locks the aggregates of messages without waiting, and reads what their handlers will ask for. Returns it by
#: the message's place in the list: None if its aggregate is locked by others, nothing if it does not exist or
#: the message is of a kind that it does not read for.
ReadAhead = Callable[[Transaction, Sequence[Message]], Mapping[int, Read | None]]


class SharedTransaction(Transaction):
    """Is given to one unit of work after the other, each of which treats it as its own.

    A unit of work that is rolled back leaves the others' changes alone: they are behind a savepoint, or not
    sent yet. Nothing is stored until `commit_all`. The first unit of work holds no locks if nothing was read
    ahead: it waits for `patience_ms`, or as long as it would alone.
    """

    def __init__(self, engine: Engine, patience_ms: int | None = None) -> None:
        super().__init__(engine)
        self._patience_ms = patience_ms
        self._ahead: deque[Read] = deque()  # of the next units of work, in their order
        self._read: Read | None = None  # of the unit of work that is open
        self._units = 0
        self._is_open = False  # a unit of work
        self._start = 0  # of its statements among the pending ones
        self._savepoint = b""  # empty: it has sent nothing
        self._holds_locks = False
        self._lock_timeout_ms: int | None = None  # None: the session's

    def __enter__(self) -> Self:
        """Take a connection from the pool."""
        super().open()
        return self

    def __exit__(self, *_: object) -> None:
        """Roll back everything that is not committed, and return the connection."""
        super().close()

    def read_ahead(self, read: ReadAhead, messages: Sequence[Message]) -> tuple[set[int], set[int]]:
        """Read in one message what the handlers of these messages will read.

        Return the places of those for which it was read, and of those that others have locked. Each message
        must change another aggregate. The former must be handled next, in this order.
        """
        found = read(self, messages)
        reads = {place: it for place, it in found.items() if it is not None}
        self._ahead = deque(reads[place] for place in sorted(reads))
        self._holds_locks = self._holds_locks or bool(reads)
        return set(reads), found.keys() - reads.keys()

    def read_before(self, sql: Statement, params: Params) -> list[Row] | None:
        """Return what was read ahead for this unit of work, once: the second time it may have changed."""
        read = self._read
        if read is None or (read.statement, read.params) != (sql, params):
            return None
        self._read = None
        return read.rows

    def open(self) -> None:
        """Begin a unit of work.

        Raises:
            RuntimeError: the last one is still open.
        """
        if self._is_open:
            super().open()  # refuses
        timeout_ms = LOCK_TIMEOUT_MS if self._holds_locks else self._patience_ms
        if timeout_ms is not None and timeout_ms != self._lock_timeout_ms:
            self._pending.append(b"SET LOCAL lock_timeout = %d" % timeout_ms)
            self._lock_timeout_ms = timeout_ms
        self._units += 1
        self._is_open, self._start, self._savepoint = True, len(self._pending), b""
        self._read = self._ahead.popleft() if self._ahead else None

    def commit(self) -> None:
        """End a unit of work; its changes will be committed with the others'."""
        if self._savepoint:
            self._pending.append(b"RELEASE SAVEPOINT " + self._savepoint)
        self._is_open, self._holds_locks = False, True

    def close(self) -> None:
        """Undo a unit of work that was not committed."""
        if not self._is_open:
            return
        if self._savepoint:
            # Fails, and all units of work with it, where an earlier one's statement was the one that failed.
            self._pending = [b"ROLLBACK TO SAVEPOINT " + self._savepoint, b"RELEASE " + self._savepoint]
        else:
            del self._pending[self._start :]
        self._is_open, self._holds_locks = False, True

    def commit_all(self) -> None:
        """Commit all units of work.

        Raises:
            CommitInDoubt: as in `Transaction.commit`.
            InFailedSqlTransaction: a statement had failed; PostgreSQL rolls back then, without an error.
        """
        super().commit()
        if self._cursor.statusmessage not in (None, "COMMIT"):
            raise psycopg2.errors.InFailedSqlTransaction("a statement had failed before the commit")

    def _send(self, statement: bytes) -> None:
        """Set the savepoint of a unit of work before the first of its statements that is sent."""
        if self._is_open and not self._savepoint:
            self._savepoint = b"unit_%d" % self._units
            self._pending.insert(self._start, b"SAVEPOINT " + self._savepoint)
        super()._send(statement)
