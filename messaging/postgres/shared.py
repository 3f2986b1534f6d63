"""One transaction for several units of work, each behind a savepoint of its own (docs/adr/012)."""

from __future__ import annotations

import psycopg2.errors

from messaging.postgres.transaction import Transaction

#: A unit of work that waits for a lock keeps what the earlier ones have locked, so it waits this long at
#: most; two groups that wait for each other would otherwise wait for PostgreSQL's deadlock detection.
LOCK_TIMEOUT_MS = 20


class SharedTransaction(Transaction):
    """Is given to one unit of work after the other, each of which treats it as its own.

    A unit of work that is rolled back leaves the others' changes alone. Nothing is stored until `commit_all`.
    The first unit of work waits for locks as long as it would alone, since it holds none yet.
    """

    _number = 0
    _savepoint = b""  # empty: no unit of work is open

    def open(self) -> None:
        """Begin a unit of work.

        Raises:
            RuntimeError: the last one is still open.
        """
        if self._savepoint or self._number == 0:
            super().open()
        if self._number == 1:
            self._pending.append(b"SET LOCAL lock_timeout = %d" % LOCK_TIMEOUT_MS)
        self._number += 1
        self._savepoint = b"unit_%d" % self._number
        self._pending.append(b"SAVEPOINT " + self._savepoint)

    def commit(self) -> None:
        """End a unit of work; its changes will be committed with the others'."""
        self._pending.append(b"RELEASE SAVEPOINT " + self._savepoint)
        self._savepoint = b""

    def close(self) -> None:
        """Undo a unit of work that was not committed."""
        if not self._savepoint:
            return
        begin = b"SAVEPOINT " + self._savepoint
        if begin in self._pending:
            del self._pending[self._pending.index(begin) :]
        else:
            # Fails, and all units of work with it, where an earlier one's statement was the one that failed.
            self._pending = [b"ROLLBACK TO " + begin, b"RELEASE " + begin]
        self._savepoint = b""

    def commit_all(self) -> None:
        """Commit all units of work.

        Raises:
            CommitInDoubt: as in `Transaction.commit`.
            InFailedSqlTransaction: a statement had failed; PostgreSQL rolls back then, without an error.
        """
        super().commit()
        if self._cursor.statusmessage not in (None, "COMMIT"):
            raise psycopg2.errors.InFailedSqlTransaction("a statement had failed before the commit")

    def end(self) -> None:
        """Roll back everything that is not committed, and return the connection."""
        super().close()
