"""Connections to PostgreSQL that give up in bounded time, and whose locks no frozen process keeps."""

from __future__ import annotations

from typing import Any

import psycopg2.errors
from sqlalchemy import Engine, create_engine, event
from sqlalchemy.engine import ExceptionContext

#: A server that is gone without a word (its machine, a cable) is noticed in some ten seconds.
KEEPALIVE = {
    "connect_timeout": 5,  # seconds
    "keepalives_idle": 5,  # seconds
    "keepalives_interval": 2,  # seconds
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,  # milliseconds
}


def connect(url: str, longest_run_s: float, tries: int, **options: Any) -> Engine:
    """Return an engine for work that runs at most `longest_run_s` seconds and is tried `tries` times.

    A wait for a lock ends early enough for the other tries. A transaction that does nothing for longer than
    any run may last belongs to a worker that is frozen or cut off; the server ends it and frees its locks.
    `options` go to `create_engine`.
    """
    engine = create_engine(url, connect_args=KEEPALIVE, **options)
    lock_timeout_ms = max(1, int(longest_run_s * 1000 / (tries + 1)))  # 0 would be for ever
    limits = (
        f"SET lock_timeout = {lock_timeout_ms};"
        f"SET idle_in_transaction_session_timeout = {int(longest_run_s * 1000)}"  # milliseconds
    )

    @event.listens_for(engine, "connect")
    def set_limits(connection: Any, _record: Any) -> None:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(limits)
        connection.autocommit = False

    event.listen(engine, "handle_error", _leave_read_only_server)
    return engine


def _leave_read_only_server(context: ExceptionContext) -> None:
    """Connect anew after a failover: the session on the old server would stay read-only for ever."""
    if isinstance(context.original_exception, psycopg2.errors.ReadOnlySqlTransaction):
        context.is_disconnect = True
