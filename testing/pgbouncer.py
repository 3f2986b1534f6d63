"""PgBouncer in transaction mode before a PostgreSQL, from Debian's package."""

from __future__ import annotations

import os
import shutil
import signal
from dataclasses import dataclass

import psycopg2

from local.ports import LOOPBACK
from local.processes.child import Child
from local.servers.accounts import account_for, give
from local.servers.postgres_server import DATABASE, ROLE, Postgres
from local.servers.server import Server

_PATH = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin"))


def find_binary() -> str | None:
    """Return pgbouncer, None if it is not installed."""
    return shutil.which("pgbouncer", path=_PATH)


@dataclass
class PgBouncer(Server):
    """A pool of `sessions` sessions; a transaction gets whichever is free."""

    postgres: Postgres | None = None
    sessions: int = 2

    @property
    def url(self) -> str:
        """Return the address of the database `allocation`."""
        return self.url_of(DATABASE)

    def url_of(self, database: str) -> str:
        """Return the address of a database."""
        return f"postgresql+psycopg2://{ROLE}@{LOOPBACK}:{self.port}/{database}"

    def _prepare(self) -> Child:
        binary = find_binary()
        if binary is None or self.postgres is None:
            raise RuntimeError("no pgbouncer, or no PostgreSQL behind it")
        account = account_for(self.folder)
        give(self.folder, account)
        users, config = self.folder / "users.txt", self.folder / "pgbouncer.ini"
        users.write_text(f'"{ROLE}" ""\n')
        config.write_text(self._config(self.postgres))
        for file in (users, config):
            file.chmod(0o644)
        return Child(
            "pgbouncer",
            [binary, "pgbouncer.ini"],
            log=self.folder / "pgbouncer.log",
            cwd=self.folder,
            user=account,
        )

    def follow(self, postgres: Postgres) -> None:
        """Use another server from now on, as a failover manager has it do."""
        self.postgres = postgres
        (self.folder / "pgbouncer.ini").write_text(self._config(postgres))
        os.kill(self.pid, signal.SIGHUP)

    def _config(self, postgres: Postgres) -> str:
        return f"""\
[databases]
* = host={LOOPBACK} port={postgres.port}
[pgbouncer]
listen_addr = {LOOPBACK}
listen_port = {self.port}
unix_socket_dir =
auth_type = trust
auth_file = users.txt
stats_users = {ROLE}
pool_mode = transaction
default_pool_size = {self.sessions}
ignore_startup_parameters = extra_float_digits
"""

    def _answers(self) -> bool:
        """Log in to its own console, which opens no session of PostgreSQL."""
        console = psycopg2.connect(
            host=LOOPBACK, port=self.port, user=ROLE, dbname="pgbouncer", connect_timeout=2
        )
        console.close()
        return True
