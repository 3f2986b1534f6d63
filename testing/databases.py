"""Copy, empty and drop databases: a test run migrates one and copies it often."""

from collections.abc import Iterator
from contextlib import contextmanager
from uuid import uuid4

import psycopg2
from psycopg2 import sql
from psycopg2.extensions import cursor

from local.servers.postgres_server import Postgres

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
    """Drop the database, ending the sessions on it."""
    name = url.rpartition("/")[2]
    with _statements(postgres.url_of("postgres")) as run:
        run.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))


def empty_database(url: str) -> None:
    """Delete every row of every table, but not which migrations were applied."""
    with _statements(url) as run:
        run.execute(
            "SELECT tablename FROM pg_tables WHERE schemaname = 'public' AND tablename <> %s",
            (_VERSION_TABLE,),
        )
        tables = [sql.Identifier(name) for (name,) in run.fetchall()]
        if tables:
            run.execute(sql.SQL("TRUNCATE {} RESTART IDENTITY CASCADE").format(sql.SQL(", ").join(tables)))


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
