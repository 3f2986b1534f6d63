"""Everything that a round may break: its own servers, supervised workers, and beat."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psycopg2
import redis
from psycopg2.extensions import cursor

from local.addresses import Addresses
from local.processes import programs, readiness
from local.processes.child import Child
from local.processes.programs import migrate
from local.processes.supervisor import Supervisor
from local.servers.mail_server import MailSink
from local.servers.postgres_server import Postgres
from local.servers.redis_server import Redis
from local.servers.server import Server
from local.waiting import eventually
from testing.databases import FAST
from testing.rabbitmq import RabbitMQ
from tests.chaos import clock, in_order
from tests.chaos.neighbour import Neighbour

#: Short times, so that a round takes seconds.
SETTINGS = {
    "ALLOCATION_WORKER_LEASE_S": "4",
    "ALLOCATION_VISIBILITY_TIMEOUT_S": "20",
    "ALLOCATION_TASK_TIME_LIMIT_S": "5",
    "ALLOCATION_EVENT_MAX_RETRIES": "2",
    "ALLOCATION_EVENT_BACKOFF_MAX_S": "1",
    "ALLOCATION_RELAY_INTERVAL_S": "1",
    "ALLOCATION_RELAY_GRACE_S": "2",
    "ALLOCATION_RELAY_GRACE_MAX_S": "60",
    "ALLOCATION_RERUN_INTERVAL_S": "1",
    "ALLOCATION_RERUN_COOLDOWN_S": "1",
    "ALLOCATION_RERUN_COOLDOWN_MAX_S": "2",
    "ALLOCATION_RERUN_MAX": "1000",
    "ALLOCATION_SMTP_TIMEOUT_S": "1",
}
#: The keys of messages that workers hold: kombu's own, and the project's.
UNACKED = ("unacked", "allocation.unacked")
WORKERS = ("worker1", "worker2")
CONCURRENCY = 2
MAX_CONNECTIONS = 40
#: The size of PostgreSQL's small disk, which may be filled up; some 40 MB are used at the start.
SMALL_DISK = "400m"


class World:
    """The backend under test on one broker, `redis` or `rabbitmq`; a context manager.

    `has` names what not every world can break: its broker, `small disk` for PostgreSQL (as root), and `clock`
    of a single program (with a C compiler).
    """

    def __init__(self, folder: Path, broker: str = "redis") -> None:
        self.folder = folder
        self.has = {broker} | ({"clock"} if clock.can_be_built() else set())
        self.postgres = Postgres(
            folder / "postgres",
            settings={
                **FAST,
                "max_connections": str(MAX_CONNECTIONS),
                "deadlock_timeout": "200ms",
                "max_wal_size": "64MB",
                "track_commit_timestamp": "on",  # the checks need the order of commits
            },
        )
        self.redis = Redis(folder / "redis")
        self.rabbitmq = RabbitMQ(folder / "rabbitmq")
        self.mail = MailSink(folder / "mail")
        broker_url = self.redis.url_of(0) if broker == "redis" else self.rabbitmq.url
        self.addresses = Addresses(self.postgres.url, broker_url, self.redis.url_of(1), self.mail.url, "")
        self.env = {**self.addresses.environment(), **SETTINGS}
        self.supervisor = Supervisor(lambda _line: None)
        self.children: dict[str, Child] = {}
        self._groups: set[int] = set()
        wait_s = float(SETTINGS["ALLOCATION_VISIBILITY_TIMEOUT_S"]) + 1
        self.neighbour = Neighbour(broker_url, folder, wait_s) if broker == "redis" else None

    def __enter__(self) -> Self:
        """Start everything and wait until the workers answer."""
        try:
            self._mount_small_disk()
            for server in self._servers():
                server.start()
            migrate(self.addresses.database_url)
            self.ask(in_order.TABLES)
            for name in WORKERS:
                self.add(self.worker(name))
            self.add(self.ours(programs.housekeeping_worker(self.folder, self.env)))
            self.add(self.ours(programs.beat(self.folder, self.env)))
            if self.neighbour is not None:
                self.add(self.neighbour.worker)
            self.supervisor.watch()
            self.wait_for_workers(*WORKERS, "housekeeping")
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop everything."""
        self.stop()

    def stop(self) -> None:
        """Stop every process, including those that a killed worker left behind."""
        self.supervisor.stop_together(list(self.children))
        self.supervisor.stop()
        if self.neighbour is not None:
            self.neighbour.close()
        for group in self._groups:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(group, signal.SIGKILL)
        for server in reversed(self._servers()):
            server.stop()
        if "small disk" in self.has:
            unmount = ["umount", "--lazy", str(self.postgres.folder)]
            subprocess.run(unmount, check=True)

    def _servers(self) -> list[Server]:
        broker = [self.rabbitmq] if "rabbitmq" in self.has else []
        return [self.postgres, self.redis, *broker, self.mail]

    def _mount_small_disk(self) -> None:
        """Mount a small disk for PostgreSQL that a test may fill up, if this account may."""
        self.postgres.folder.mkdir(parents=True, exist_ok=True)
        mount = [
            "mount",
            "-t",
            "tmpfs",
            "-o",
            f"size={SMALL_DISK},mode=0755",
            "none",
            str(self.postgres.folder),
        ]
        with suppress(FileNotFoundError):
            if os.geteuid() == 0 and subprocess.run(mount, check=False, capture_output=True).returncode == 0:
                self.has.add("small disk")

    def worker(self, name: str) -> Child:
        """Return a worker of commands and events, not yet started; the first one runs them in groups."""
        groups = {"ALLOCATION_GROUP_MAX": "8"} if name == WORKERS[0] else {}
        env = {**self.env, **groups}
        return self.ours(programs.worker(name, programs.WORK_QUEUES, self.folder, env, CONCURRENCY))

    @staticmethod
    def ours(child: Child) -> Child:
        """Make a program run the app with the deadly commands."""
        child.command = ["tests.chaos.app" if part == "tasks" else part for part in child.command]
        return child

    def add(self, child: Child) -> None:
        """Start a program that the supervisor keeps running."""
        self.children[child.name] = child
        self.supervisor.start(child.name, child)

    def remove(self, *names: str) -> None:
        """Stop programs that a fault added."""
        self.supervisor.stop_together(names)
        for name in names:
            self.children.pop(name)

    def kill(self, *names: str) -> None:
        """SIGKILL only main processes: their pool's children have to notice it, as in real life."""
        for name in names:
            pid = self.children[name].pid
            self._groups.add(pid)
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def wait_for_workers(self, *names: str) -> None:
        """Wait until these workers answer a ping."""
        eventually(
            lambda: readiness.workers_answer(self.addresses.broker_url, *names), 90, f"an answer of {names}"
        )

    def wait_until_ready(self, *names: str) -> None:
        """Wait until these workers report readiness, without a round trip over the broker."""
        for name in names:
            eventually(lambda name=name: " ready." in self.children[name].log_text(), 90, f"{name} ready")  # type: ignore[misc]

    def start_again(self, *names: str) -> None:
        """Restart killed programs, without the supervisor's back-off."""
        for name in names:
            eventually(lambda name=name: not self.children[name].running, 30, f"the end of {name}")  # type: ignore[misc]
            self.supervisor.resume(name)

    @contextmanager
    def sql(self) -> Iterator[cursor]:
        """Return a cursor of a separate connection, in autocommit."""
        connection = psycopg2.connect(self.addresses.database_url.replace("+psycopg2", "", 1))
        connection.autocommit = True
        try:
            with connection.cursor() as run:
                yield run
        finally:
            connection.close()

    def ask(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """Run one query and return its rows."""
        with self.sql() as run:
            run.execute(query, values or None)
            return run.fetchall() if run.description else []

    def holds_messages_of(self, prefix: str) -> bool:
        """Return whether Redis may redeliver a message of a round."""
        if "redis" not in self.has:
            return False
        with redis.Redis.from_url(self.addresses.broker_url) as broker:
            held = [value for key in UNACKED for value in broker.hvals(key)]
        return any(f'"{prefix}-'.encode() in value for value in held)

    def restart_mail(self, *faults: str) -> None:
        """Restart the mail server with other options."""
        self.mail.stop()
        self.mail.faults = faults
        self.mail.start()

    def together(self, *actions: Callable[[], object]) -> None:
        """Run these concurrently and wait for all."""
        threads = [threading.Thread(target=action) for action in actions]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
