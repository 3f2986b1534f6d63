"""Connections to PostgreSQL with limited waits, whose locks a frozen process cannot keep."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import psycopg2.errors
from sqlalchemy import Engine, create_engine, event
from sqlalchemy.engine import ExceptionContext

from messaging.postgres.address import names_several, parse
from messaging.postgres.commits import Connection
from messaging.postgres.transaction import EACH_TRANSACTION

#: Detects a server that vanished (its machine, a cable) in some seven seconds.
KEEPALIVE = {
    "connect_timeout": 5,  # seconds
    "keepalives_idle": 3,  # seconds
    "keepalives_interval": 1,  # seconds
    "keepalives_count": 4,
    "tcp_user_timeout": 7_000,  # milliseconds
}
#: For each of several servers: every new session waits so long for one that vanished.
CONNECT_TO_EACH = {"connect_timeout": 3}  # seconds


def connect(
    url: str,
    longest_run_s: float,
    tries: int,
    connect_args: Mapping[str, Any] | None = None,
    shared_sessions: bool = False,
    **options: Any,
) -> Engine:
    """Return an engine for work that takes at most `longest_run_s` seconds, in `tries` attempts.

    A wait for a lock ends early enough for the other attempts. A transaction that is idle for longer than
    `longest_run_s` belongs to a frozen or disconnected worker; the server ends it and frees its locks.
    The address may name several servers; `connect_args` go to the driver, `options` to `create_engine`.
    With `shared_sessions` each transaction may get another session, as with PgBouncer in transaction mode:
    nothing outlives a transaction, neither a setting nor a prepared statement.
    """
    address = parse(url)
    waits = {**KEEPALIVE, **(CONNECT_TO_EACH if names_several(address) else {})}
    engine = create_engine(
        address, connect_args={**waits, "connection_factory": Connection, **(connect_args or {})}, **options
    )
    lock_timeout_ms = max(1, int(longest_run_s * 1000 / (tries + 1)))  # 0 would mean for ever
    settings: dict[str, int | str] = {
        "lock_timeout": lock_timeout_ms,
        "idle_in_transaction_session_timeout": int(longest_run_s * 1000),  # milliseconds
        "timezone": "'UTC'",  # times are read in this one, whatever the server's is
    }
    (_set_in_transactions if shared_sessions else _set_in_sessions)(engine, settings)
    event.listen(engine, "handle_error", _leave_read_only_server)
    return engine


def _set_in_sessions(engine: Engine, settings: Mapping[str, int | str]) -> None:
    statements = ";".join(f"SET {name} = {value}" for name, value in settings.items())

    @event.listens_for(engine, "connect")
    def set_all(connection: Any, _record: Any) -> None:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(statements)
        connection.autocommit = False


def _set_in_transactions(engine: Engine, settings: Mapping[str, int | str]) -> None:
    statements = "; ".join(f"SET LOCAL {name} = {value}" for name, value in settings.items())

    @event.listens_for(engine, "connect")
    def note_all(_connection: Any, record: Any) -> None:
        record.info[EACH_TRANSACTION] = statements.encode()

    @event.listens_for(engine, "begin")
    def set_all(connection: Any) -> None:
        connection.exec_driver_sql(statements)


def _leave_read_only_server(context: ExceptionContext) -> None:
    """Reconnect after a failover: a session on the old server would stay read-only for ever."""
    if isinstance(context.original_exception, psycopg2.errors.ReadOnlySqlTransaction):
        context.is_disconnect = True
