"""Databases for tests: migrated once, copied often."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import uuid4

import psycopg2
from psycopg2 import sql
from psycopg2.extensions import cursor

from local.child import ROOT, ChildFailedError
from local.postgres import Postgres
from local.service import ALLOCATION, Service

#: Kept when a database is emptied: it says which migrations were applied.
_VERSION_TABLE = "alembic_version"


def migrate(url: str, service: Service = ALLOCATION) -> None:
    """Apply the migrations to the database at `url`, as an operator does: `python -m allocation migrate`."""
    environment = {**os.environ, service.variable("database_url"): url}
    result = subprocess.run(
        [sys.executable, "-m", service.tool, "migrate"],
        env=environment, cwd=ROOT, check=False, text=True, capture_output=True, timeout=120,
    )  # fmt: skip
    if result.returncode != 0:
        raise ChildFailedError(
            f"the migration ended with status {result.returncode}:\n{result.stderr[-3000:]}"
        )


def copy_database(postgres: Postgres, template: str) -> str:
    """Return the URL of a new database that is a copy of `template`, which nobody may be using."""
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
    """Give a cursor whose statements commit one by one."""
    connection = psycopg2.connect(url.replace("+psycopg2", "", 1))
    connection.autocommit = True
    try:
        with connection.cursor() as run:
            yield run
    finally:
        connection.close()
