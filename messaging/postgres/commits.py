"""Commits that are told as success only when every synchronous standby has them."""

from __future__ import annotations

from typing import Any

import psycopg2
from psycopg2.extensions import connection

#: A commit that writes waits for everything that was written before it, also for what is visible but was not
#: waited for: its session was ended or cancelled, or its server restarted.
WAIT_FOR_STANDBY = "SELECT pg_logical_emit_message(true, 'wait', '')"


class CommitInDoubt(psycopg2.OperationalError):
    """The server committed with a warning: a standby may not have the transaction yet."""


def raise_if_in_doubt(notices: list[str]) -> None:
    """Raise if the server has warned during a commit; the caller has emptied `notices` before it.

    A cancelled wait for a standby is only a warning, in the server's language and without a code.
    """
    if notices:
        raise CommitInDoubt(notices[-1].strip())


class Connection(connection):
    """psycopg2's connection, whose `commit` fails where the server only warns."""

    def commit(self) -> None:
        """Commit.

        Raises:
            CommitInDoubt: committed, but the wait for a synchronous standby may have been cancelled.
        """
        notices: Any = self.notices
        notices.clear()
        super().commit()
        raise_if_in_doubt(notices)
