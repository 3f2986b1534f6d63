"""Two PostgreSQL servers, one the synchronous standby of the other, that can swap their roles."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

import psycopg2
from psycopg2.extensions import cursor

from local.ports import LOOPBACK
from local.processes.child import Child
from local.servers import postgres_server
from local.servers.accounts import account_for, give
from local.servers.postgres_server import DATABASE, ROLE, Postgres
from local.waiting import eventually
from testing.freezing import thaw

SUPERUSER = "postgres"
_HBA = f"""\
host all {SUPERUSER} {LOOPBACK}/32 trust
host replication {SUPERUSER} {LOOPBACK}/32 trust
"""


@dataclass
class Node(Postgres):
    """One of the two; `follows` is the primary that it copies and follows."""

    follows: Node | None = None
    host: str = LOOPBACK

    def _prepare(self) -> Child:
        data = self.folder / "data"
        if self.follows is not None and not data.exists():
            self._copy(self.follows, data)
        return super()._prepare()

    def _copy(self, primary: Node, data: Path) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        account = account_for(self.folder)
        unfinished = data.with_name("data.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        give(unfinished, account)
        source = ("-h", primary.host, "-p", str(primary.port), "-U", SUPERUSER)
        how = ("-D", ".", "--checkpoint=fast", "--no-sync", "--wal-method=stream")
        postgres_server._run("pg_basebackup", *source, *how, cwd=unfinished, account=account)
        (unfinished / "standby.signal").touch()
        with (unfinished / "postgresql.conf").open("a") as file:
            conninfo = f"host={primary.host} port={primary.port} user={SUPERUSER} application_name=standby"
            file.write(f"primary_conninfo = '{conninfo}'\nsynchronous_standby_names = ''\n")
        unfinished.rename(data)

    @contextmanager
    def as_superuser(self, database: str = DATABASE) -> Iterator[cursor]:
        """Yield a cursor that commits each statement and waits for no standby."""
        connection = psycopg2.connect(
            host=self.host,
            port=self.port,
            user=SUPERUSER,
            dbname=database,
            connect_timeout=3,
            options="-c synchronous_commit=local",
        )
        connection.autocommit = True
        try:
            with connection.cursor() as run:
                yield run
        finally:
            connection.close()

    def ask(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        """Run a query as the superuser and return its rows."""
        with self.as_superuser() as run:
            run.execute(query, values or None)
            return run.fetchall() if run.description else []

    def configure(self, line: str) -> None:
        """Append a line to the configuration, and reload it."""
        with (self.folder / "data" / "postgresql.conf").open("a") as file:
            file.write(f"{line}\n")
        self.reload()

    def refuse_replication(self) -> None:
        """Let no standby follow any more, as after a cut cable. (A superuser needs no role attribute.)"""
        rules = self.folder / "data" / "pg_hba.conf"
        line = f"host replication {SUPERUSER} {LOOPBACK}/32 "
        rules.write_text(rules.read_text().replace(f"{line}trust", f"{line}reject"))
        self.reload()
        refused = (
            "SELECT 1 FROM pg_hba_file_rules WHERE database = '{replication}' AND auth_method = 'reject'"
        )
        eventually(lambda: self.ask(refused), what="the rule")
        self.ask("SELECT pg_terminate_backend(pid) FROM pg_stat_replication")
        streams = "SELECT 1 FROM pg_stat_replication"
        eventually(lambda: not self.ask(streams), what="the end of replication")

    def reload(self) -> None:
        """Have the server read its configuration again."""
        os.kill(self.pid, signal.SIGHUP)


@dataclass
class PostgresPair:
    """A primary with a synchronous standby; a context manager."""

    folder: Path
    settings: dict[str, str] = field(default_factory=dict)
    rules: ClassVar[str] = _HBA

    def __post_init__(self) -> None:
        """Plan both; the second copies the first when it starts."""
        self.primary = Node(self.folder / "one", settings=self.settings)
        self.standby = Node(self.folder / "two", settings=self.settings, follows=self.primary)

    @property
    def url(self) -> str:
        """Return the address of both."""
        hosts = ",".join(f"{host}:{port}" for host, port in self._addresses)
        return f"postgresql+psycopg2://{ROLE}@{hosts}/{DATABASE}"

    def __enter__(self) -> Self:
        """Start both, and wait until the standby is synchronous."""
        try:
            return self.start()
        except BaseException:
            self.stop()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop both."""
        self.stop()

    def start(self) -> Self:
        """Start both, and wait until the standby is synchronous."""
        self._addresses = [(node.host, node.port) for node in (self.primary, self.standby)]
        self.primary.start()
        with (self.primary.folder / "data" / "pg_hba.conf").open("a") as file:
            file.write(self.rules)
        self.primary.reload()
        eventually(lambda: self.primary.ask("SELECT 1"), what="the superuser's login")
        self.follow()
        return self

    def stop(self) -> None:
        """Stop both; a frozen one is thawed first."""
        for node in (self.standby, self.primary):
            if node.running:
                thaw(node.pid)
                node.stop()

    def follow(self) -> None:
        """Start the standby over a copy of the primary, if it has no data, and make it synchronous."""
        self.standby.start()
        self.require_standby()

    def require_standby(self, required: bool = True) -> None:
        """Make every commit wait for the standby, or for none."""
        self.primary.configure(f"synchronous_standby_names = '{'standby' if required else ''}'")
        if required:
            state = "SELECT sync_state FROM pg_stat_replication WHERE state = 'streaming'"
            eventually(lambda: self.primary.ask(state) == [("sync",)], what="a synchronous standby")

    def promote(self) -> None:
        """Make the standby the primary, as a failover manager does; the old one must be dead or cut off.

        Commits of the new primary wait for no standby until the old one follows it.
        """
        self.standby.ask("SELECT pg_promote(true, 60)")
        self.primary, self.standby = self.standby, self.primary

    def rebuild(self) -> None:
        """Copy the new primary over the old one, which follows it from now on."""
        self.standby.kill()
        shutil.rmtree(self.standby.folder / "data", ignore_errors=True)
        self.standby.follows, self.primary.follows = self.primary, None
        self.follow()
