"""The backend and its broker, and two shops: one on SQLite, one on PostgreSQL."""

from __future__ import annotations

import os
import sys
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psycopg2

from local.addresses import Addresses
from local.processes import programs, readiness
from local.processes.child import Child
from local.processes.programs import migrate
from local.servers.mail_server import MailSink
from local.servers.postgres_server import Postgres
from local.servers.redis_server import Redis
from local.servers.server import Server
from local.waiting import eventually
from testing.databases import FAST
from testing.rabbitmq import RabbitMQ
from tests.transactional_send import shop

SETTINGS = {
    "ALLOCATION_WORKER_LEASE_S": "4",
    "ALLOCATION_VISIBILITY_TIMEOUT_S": "20",
    "ALLOCATION_TASK_TIME_LIMIT_S": "5",
    "ALLOCATION_EVENT_BACKOFF_MAX_S": "1",
    "ALLOCATION_RELAY_INTERVAL_S": "1",
    "ALLOCATION_SMTP_TIMEOUT_S": "1",
}
#: What can be had from the start; there is less of SCARCE than will be ordered.
STOCK = {"LAMP": 1_000_000, "CHAIR": 1_000_000, "SCARCE": 20}


class World:
    """Servers, a worker and the shops' databases; a context manager."""

    def __init__(self, folder: Path, broker: str) -> None:
        self.folder = folder
        self.postgres = Postgres(folder / "postgres", settings=FAST)
        self.redis = Redis(folder / "redis")
        self.broker: Server = self.redis if broker == "redis" else RabbitMQ(folder / "rabbitmq")
        self.mail = MailSink(folder / "mail")
        self.shops: list[str] = []

    def __enter__(self) -> Self:
        """Start everything and return when the worker answers."""
        try:
            for server in self._servers():
                server.start()
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop everything."""
        self.stop()

    def _start(self) -> None:
        migrate(self.postgres.url)
        self.sql("CREATE DATABASE shop")
        self.shops = [str(self.folder / "shop.db"), _plain(self.postgres.url_of("shop"))]
        for url in self.shops:
            shop.create(url)
        for sku, quantity in STOCK.items():
            self.stock(sku, quantity)
        self.addresses = Addresses(
            self.postgres.url, self.broker.url, self.redis.url_of(1), self.mail.url, ""
        )
        env = {**self.addresses.environment(), **SETTINGS}
        self.worker = programs.worker("worker", programs.WORK_QUEUES, self.folder, env, 2)
        self.worker.start()
        eventually(self._worker_answers, 90, "an answer from the worker")

    def keep_worker(self) -> None:
        """Start the worker again if it ended, as a supervisor does: Celery may when its broker is killed."""
        if not self.worker.running:
            self.worker.start()

    def _worker_answers(self) -> bool:
        assert self.worker.running, self.worker.log_tail()
        return readiness.workers_answer(self.broker.url, "worker")

    def stop(self) -> None:
        """End every process."""
        if hasattr(self, "worker"):
            self.worker.kill()
        for server in reversed(self._servers()):
            server.stop()

    def _servers(self) -> list[Server]:
        broker = [] if self.broker is self.redis else [self.broker]
        return [self.postgres, self.redis, *broker, self.mail]

    def stock(self, sku: str, quantity: int) -> None:
        """Have stock of a product."""
        self.sql("INSERT INTO products (sku) VALUES (%s)", sku)
        self.sql(
            "INSERT INTO batches (reference, sku, purchased_quantity) VALUES (%s, %s, %s)",
            f"batch-{sku}", sku, quantity,
        )  # fmt: skip

    def sql(self, statement: str, *values: Any) -> list[tuple[Any, ...]]:
        """Ask the backend's database."""
        with closing(psycopg2.connect(_plain(self.postgres.url))) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(statement, values or None)
                return cursor.fetchall() if cursor.description else []

    def program(self, name: str, role: str, database: str, *arguments: str) -> Child:
        """Return a program of a shop: its app, or a relay."""
        command = [
            sys.executable, "-m", "tests.transactional_send.shop", role,
            "--database", database, "--folder", str(self.folder),
            "--broker-url", self.broker.url, "--results-url", self.addresses.result_backend_url, *arguments,
        ]  # fmt: skip
        env = {**os.environ, "PYTHONUNBUFFERED": "1"}
        return Child(name, command, log=self.folder / f"{name}.log", env=env, stop_timeout=6.0)


def _plain(url: str) -> str:
    return url.replace("+psycopg2", "", 1)
