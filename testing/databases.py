"""Copy, empty and drop databases: a test run migrates one and copies it often."""

from collections.abc import Iterator
from contextlib import contextmanager
from uuid import uuid4

import psycopg2
import psycopg2.errors
from psycopg2 import sql
from psycopg2.extensions import cursor

from local.servers.postgres_server import Postgres
from local.waiting import eventually

#: Settings of a server for tests: it survives SIGKILL, not a power cut, and saves disk writes and time.
FAST = {"fsync": "off", "full_page_writes": "off"}

#: Kept when a database is emptied: it records which migrations were applied.
_VERSION_TABLE = "alembic_version"


def copy_database(postgres: Postgres, template: str) -> str:
    """Return the URL of a new copy of the database `template`, which must have no sessions."""
    name = f"test_{uuid4().hex[:12]}"
    with _statements(postgres.url_of("postgres")) as run:
        run.execute(
            sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY FILE_COPY").format(
                sql.Identifier(name), sql.Identifier(template)
            )
        )
    return postgres.url_of(name)


def drop_database(postgres: Postgres, url: str) -> None:
    """Drop the database, ending the sessions on it.

    Also while autovacuum is at work there: only a member of `pg_signal_backend` may end it by force.
    """
    name = url.rpartition("/")[2]
    with _statements(postgres.url_of("postgres")) as run:
        statement = sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name))
        eventually(
            lambda: _runs(run, statement, unless=psycopg2.errors.InsufficientPrivilege),
            what="a drop beside no autovacuum",
        )


def empty_database(url: str) -> None:
    """Delete every row of every table, but not which migrations were applied.

    Also while a worker's housekeeping reads them: its statement and this one may lock them in another order.
    """
    with _statements(url) as run:
        run.execute(
            "SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tablename <> %s",
            (_VERSION_TABLE,),
        )
        tables = [sql.Identifier(name) for (name,) in run.fetchall()]
        if tables:
            statement = sql.SQL("TRUNCATE {} RESTART IDENTITY CASCADE").format(sql.SQL(", ").join(tables))
            eventually(
                lambda: _runs(run, statement, unless=psycopg2.errors.DeadlockDetected),
                what="a truncation without a deadlock",
            )


def _runs(run: cursor, statement: sql.Composable, unless: type[psycopg2.Error]) -> bool:
    """Run a statement; False if it failed with the error `unless`, which passes."""
    try:
        run.execute(statement)
    except unless:
        return False
    return True


@contextmanager
def _statements(url: str) -> Iterator[cursor]:
    """Yield a cursor whose statements commit one by one."""
    connection = psycopg2.connect(url.replace("+psycopg2", "", 1))
    connection.autocommit = True
    try:
        with connection.cursor() as run:
            yield run
    finally:
        connection.close()
