"""RabbitMQ for tests and benchmarks: Debian's package as a child process with its own epmd and data."""

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from kombu import Connection

from local.ports import LOOPBACK, free_port, is_free
from local.processes.child import Child
from local.servers.server import Server
from local.waiting import eventually

# The program itself; the wrapper in /usr/sbin changes to its own account and folder.
_PATH = os.pathsep.join(("/usr/lib/rabbitmq/bin", os.environ.get("PATH", os.defpath)))

CONFIG = """\
listeners.tcp.1 = 127.0.0.1:{port}
log.console = true
log.console.level = warning
log.file = false
disk_free_limit.absolute = 50MB
"""


class NoRabbitMQError(RuntimeError):
    """RabbitMQ is not installed on this machine."""

    def __str__(self) -> str:
        """Say what to install."""
        return "no rabbitmq-server was found: install Debian's package of that name"


def find_binary() -> Path | None:
    """Return rabbitmq-server, None if it is not installed."""
    found = shutil.which("rabbitmq-server", path=_PATH)
    return Path(found) if found else None


@dataclass
class RabbitMQ(Server):
    """A RabbitMQ node; `url` is its virtual host `/`."""

    epmd_port: int = field(default_factory=free_port)
    distribution_port: int = field(default_factory=free_port)
    start_timeout: float = field(default=180.0, repr=False)  # seconds; half a minute alone, on two busy cores
    config: str = ""  # more lines of rabbitmq.conf
    _epmd: Child | None = field(default=None, init=False, repr=False)

    @property
    def url(self) -> str:
        """Return the address for Celery."""
        return f"amqp://guest:guest@{LOOPBACK}:{self.port}//"

    def start(self) -> Self:
        """Start the node, and first its name server, which it would otherwise leave behind as a daemon."""
        self.folder = self.folder.resolve()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._epmd = Child(
            "epmd",
            ["epmd", "-port", str(self.epmd_port), "-address", LOOPBACK],
            log=self.folder / "epmd.log",
        )
        self._epmd.start()
        try:
            eventually(lambda: not is_free(self.epmd_port), what="epmd")
            return super().start()
        except BaseException:
            self._epmd.kill()
            raise

    def stop(self) -> None:
        """Stop the node cleanly, and its name server."""
        super().stop()
        if self._epmd is not None:
            self._epmd.stop()

    def kill(self) -> None:
        """SIGKILL both."""
        super().kill()
        if self._epmd is not None:
            self._epmd.kill()

    def control(self, *arguments: str) -> None:
        """Run rabbitmqctl on this node."""
        command = [str(self._binary().with_name("rabbitmqctl")), "-n", self._node, *arguments]
        child = Child("rabbitmqctl", command, log=self.folder / "rabbitmqctl.log", env=self._environment())
        child.start()
        eventually(lambda: not child.running, 60, f"rabbitmqctl {arguments[0]}")
        if child.exit_code:
            raise child.ended_early()

    def delete_queues(self, *names: str) -> None:
        """Delete queues with their messages; ignore those that do not exist."""
        with Connection(self.url) as connection, connection.channel() as channel:
            for name in names:
                channel.queue_delete(name)

    def _prepare(self) -> Child:
        (self.folder / "home").mkdir(exist_ok=True)
        (self.folder / "rabbitmq.conf").write_text(CONFIG.format(port=self.port) + self.config)
        (self.folder / "enabled_plugins").write_text("[].\n")
        return Child(
            "rabbitmq",
            [str(self._binary())],
            log=self.folder / "rabbitmq.log",
            env=self._environment(),
            cwd=self.folder,
            stop_timeout=30.0,
        )

    def _answers(self) -> bool:
        with Connection(self.url, connect_timeout=2, heartbeat=0) as connection:
            connection.connect()
            return bool(connection.connected)

    @staticmethod
    def _binary() -> Path:
        binary = find_binary()
        if binary is None:
            raise NoRabbitMQError
        return binary

    @property
    def _node(self) -> str:
        return f"test{self.port}@localhost"

    def _environment(self) -> dict[str, str]:
        folder = self.folder
        return {
            **os.environ,
            "HOME": str(folder / "home"),
            "RABBITMQ_NODENAME": self._node,
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(self.distribution_port),
            "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(folder / "log"),
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
            "RABBITMQ_CONF_ENV_FILE": str(folder / "none.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-start_epmd false",
            "ERL_EPMD_PORT": str(self.epmd_port),
            "ERL_EPMD_ADDRESS": LOOPBACK,
        }
