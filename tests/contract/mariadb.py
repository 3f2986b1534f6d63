"""A MariaDB for the tests: Debian's package as a process of our own."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from local.ports import LOOPBACK
from local.processes.child import Child
from local.servers.accounts import account_for, give, let_pass
from local.servers.server import Server
from tests.programs import missing

_PATH = os.pathsep.join(("/usr/sbin", os.environ.get("PATH", os.defpath)))


def pymysql() -> Any:
    """Return the driver; skip the test where it, or the server, is not installed."""
    if shutil.which("mariadbd", path=_PATH) is None:
        missing("mariadbd", "Debian's package mariadb-server")
    try:
        import pymysql
    except ImportError:
        missing("PyMySQL", "pip install PyMySQL")
    return pymysql


@dataclass
class MariaDB(Server):
    """A MariaDB with a database `shop`, to which everybody on this machine is let in."""

    @property
    def url(self) -> str:
        """Return the address as SQLAlchemy wants it."""
        return f"mysql+pymysql://root@{LOOPBACK}:{self.port}/shop"

    def connect(self, database: str | None = "shop", **options: Any) -> Any:
        """Return a connection of the driver."""
        return pymysql().connect(host=LOOPBACK, port=self.port, user="root", database=database, **options)

    def connect_by_mysqls_own_driver(self) -> Any:
        """Return a connection of mysql-connector-python; skip the test where it is not installed."""
        try:
            import mysql.connector
        except ImportError:
            missing("mysql-connector-python", "pip install mysql-connector-python")
        # MariaDB lacks the collation that is its default.
        return mysql.connector.connect(
            host=LOOPBACK, port=self.port, user="root", database="shop", collation="utf8mb4_bin"
        )

    def _prepare(self) -> Child:
        self.folder.mkdir(parents=True, exist_ok=True)
        data = self.folder / "data"
        account = account_for(data)
        if account is not None:
            let_pass(data)
        if not data.exists():
            data.mkdir()
            install = shutil.which("mariadb-install-db", path=_PATH)
            subprocess.run(
                [
                    str(install), "--no-defaults", f"--datadir={data}", "--skip-test-db",
                    "--auth-root-authentication-method=normal",
                    f"--user={account.pw_name if account else ''}",
                ],
                check=True, capture_output=True, timeout=120,
            )  # fmt: skip
            if account is not None:
                give(data, account)
        command = [
            str(shutil.which("mariadbd", path=_PATH)), "--no-defaults", f"--datadir={data}",
            f"--bind-address={LOOPBACK}", f"--port={self.port}", f"--socket={data}/socket",
            "--skip-networking=0", "--innodb-flush-log-at-trx-commit=0",
        ]  # fmt: skip
        return Child(
            "mariadb", command, log=self.folder / "mariadb.log", cwd=data, user=account, stop_timeout=20
        )

    def _answers(self) -> bool:
        connection = self.connect(None)
        with connection.cursor() as cursor:
            cursor.execute("CREATE DATABASE IF NOT EXISTS shop")
        connection.close()
        return True


def start(folder: Path) -> MariaDB:
    """Start one, or skip the test where that cannot be."""
    pymysql()
    return MariaDB(folder).start()
