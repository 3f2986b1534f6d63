"""The benchmark's own PostgreSQL and Redis, with their production settings."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg2
import redis
from psycopg2.extensions import connection

from local.processes.programs import migrate
from local.servers.mail_server import MailSink
from local.servers.postgres_server import Postgres
from local.servers.redis_server import Redis
from testing.databases import empty_database


@dataclass(frozen=True)
class Servers:
    """The servers of all peers; `sql` is for the benchmark itself."""

    folder: Path
    postgres: Postgres
    redis: Redis
    sql: connection

    def rows(self, statement: str, params: tuple[object, ...] = ()) -> list[tuple[object, ...]]:
        """Run one statement and return its rows, if any."""
        with self.sql.cursor() as run:
            run.execute(statement, params)
            return run.fetchall() if run.description else []

    def number(self, statement: str, params: tuple[object, ...] = ()) -> int:
        """Run one statement that returns one number."""
        return int(str(self.rows(statement, params)[0][0]))

    def flush_results(self) -> None:
        """Delete the results of `ours`."""
        with redis.Redis.from_url(self.redis.url_of(1)) as client:
            client.flushdb()

    def empty(self) -> None:
        """Delete every row and message."""
        empty_database(self.postgres.url)
        self.flush_redis()

    def flush_redis(self) -> None:
        """Delete all messages and results."""
        with redis.Redis.from_url(self.redis.url) as client:
            client.flushall()


@contextmanager
def servers() -> Iterator[Servers]:
    """Start the servers, migrate, and set their addresses in the environment."""
    folder = Path(tempfile.mkdtemp(prefix="allocation-benchmark-"))
    try:
        postgres = Postgres(folder / "postgres", settings={"max_wal_size": "4GB"})
        with postgres, Redis(folder / "redis") as redis_server, MailSink(folder / "mail") as mail:
            _set_environment(postgres, redis_server, mail)
            migrate(postgres.url)
            sql = psycopg2.connect(postgres.url.replace("+psycopg2", "", 1))
            sql.autocommit = True
            try:
                yield Servers(folder, postgres, redis_server, sql)
            finally:
                sql.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _set_environment(postgres: Postgres, redis_server: Redis, mail: MailSink) -> None:
    os.environ["ALLOCATION_DATABASE_URL"] = postgres.url
    os.environ["ALLOCATION_BROKER_URL"] = redis_server.url_of(0)
    os.environ["ALLOCATION_RESULT_BACKEND_URL"] = redis_server.url_of(1)
    os.environ["ALLOCATION_SMTP_URL"] = mail.url
    os.environ["BENCHMARK_REDIS_URL"] = redis_server.url.rpartition("/")[0]
