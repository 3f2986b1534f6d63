"""The backend on a cluster of one kind of server; two workers, one of which can be cut off from it."""

from __future__ import annotations

import os
import subprocess
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import redis
from redis.sentinel import Sentinel as RedisSentinel

from local import ROOT
from local.addresses import Addresses
from local.ports import LOOPBACK
from local.processes import readiness
from local.processes.child import Child
from local.processes.supervisor import Supervisor
from local.servers.mail_server import MailSink
from local.servers.postgres_server import Postgres
from local.servers.redis_server import Redis
from local.servers.server import Server
from local.waiting import NotInTimeError, eventually
from reliable_celery.sentinel import Sentinel
from testing.databases import FAST
from testing.freezing import thaw
from testing.link import Link
from testing.postgres_pair import PostgresPair
from testing.rabbitmq_cluster import ClusterNode, RabbitMQCluster, running_nodes
from testing.sentinels import MASTER, PASSWORD, SENTINEL_PASSWORD, Sentinels, SentinelServer
from tests.chaos.world import SETTINGS, WORKERS, World

#: Seconds that a failover manager takes to notice; Patroni's usual `ttl` is 30 s, often set to 10 or less.
NOTICED_S = 2.0
#: The commit whose workers run beside this one's.
OLD_RELEASE = os.environ.get("CLUSTER_OLD_RELEASE", "HEAD~1")
REJOIN_S = 25.0  # a node that comes back finds the others within this
POSTGRES = {
    **FAST,
    "deadlock_timeout": "200ms",
    "track_commit_timestamp": "on",
    "wal_retrieve_retry_interval": "500ms",  # after 5 s by default a standby follows its restarted primary
}
#: The worker behind links.
FAR = WORKERS[1]
ASKED = Sentinel(MASTER, password=SENTINEL_PASSWORD)


class ClusterWorld(World, ABC):
    """What the three worlds share: mail, workers, and links to one of these."""

    #: The broker may forget what it has confirmed; senders then send again with the same key.
    forgets = False

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.has = set()
        self.mail = MailSink(folder / "mail")
        self.supervisor = Supervisor(lambda _line: None)
        self.children: dict[str, Child] = {}
        self._groups: set[int] = set()
        self.neighbour = None
        self._stack = ExitStack()
        self.links: list[Link] = []

    @abstractmethod
    def start_servers(self, enter: Callable[[Any], Any]) -> Addresses:
        """Start the servers and return their addresses."""

    @abstractmethod
    def far_settings(self) -> dict[str, str]:
        """Return the addresses of the worker behind links."""

    @abstractmethod
    def heal(self) -> None:
        """Make the cluster whole again."""

    def __enter__(self) -> Self:
        """Start everything and wait until the workers answer."""
        try:
            self.addresses = self.start_servers(self._stack.enter_context)
            self.env = {**self.addresses.environment(), **SETTINGS, **self.settings()}
            super().__enter__()
        except BaseException:
            self._stack.close()
            raise
        return self

    def settings(self) -> dict[str, str]:
        """Return further settings of all programs."""
        return {}

    def stop(self) -> None:
        """Stop every process."""
        for link in self.links:
            link.mend()
        try:
            super().stop()
        finally:
            self._stack.close()

    def worker(self, name: str) -> Child:
        """Return a worker, not yet started."""
        child = super().worker(name)
        if name == FAR:
            child.env = {**(child.env or {}), **self.far_settings()}
        return child

    def replace(self, *names: str, old: bool = False) -> None:
        """Replace workers one by one, by those of this release or of the one before."""
        for name in names:
            self.remove(name)
            child = self.worker(name)
            if old:
                child.cwd = self.old_release()
                child.log = self.folder / f"{name}-old.log"
            self.add(child)
            self.wait_until_ready(name)

    def old_release(self) -> Path:
        """Return a folder with the code of the release before this one."""
        folder = self.folder / "release-before"
        if not folder.exists():
            folder.mkdir(parents=True)
            archive = self.folder / "release-before.tar"
            command = ["git", "archive", f"--output={archive}", OLD_RELEASE]
            subprocess.run(command, cwd=ROOT, check=True)
            with tarfile.open(archive) as files:
                files.extractall(folder, filter="data")
        return folder

    def link(self, port: int) -> int:
        """Return the port of a link to a server."""
        self.links.append(self._stack.enter_context(Link(port)))
        return self.links[-1].port

    def kill_host(self, name: str) -> None:
        """SIGKILL a worker and its children, as the end of its machine."""
        self.children[name].kill()

    def wait_for_workers(self, *names: str) -> None:
        """Wait until these workers answer a ping."""
        eventually(
            lambda: readiness.workers_answer(self.addresses.broker_url, *names, sentinel=ASKED),
            120,
            f"an answer of {names}",
        )

    def results(self) -> redis.Redis:
        """Return a client of the results."""
        return redis.Redis.from_url(self.addresses.result_backend_url, socket_timeout=5)

    def transport_options(self) -> dict[str, Any]:
        """Return the options of a plain sender."""
        return {"socket_timeout": 5, "socket_connect_timeout": 2}

    def _servers(self) -> list[Server]:
        return [self.mail]

    def _mount_small_disk(self) -> None:
        """Not here."""


class PostgresWorld(ClusterWorld):
    """A primary with a synchronous standby; one Redis."""

    def start_servers(self, enter: Callable[[Any], Any]) -> Addresses:
        """Start them."""
        self.pair: PostgresPair = enter(PostgresPair(self.folder / "pair", dict(POSTGRES)))
        server = enter(Redis(self.folder / "redis"))
        url = f"{self.pair.url}?target_session_attrs=read-write"
        return Addresses(url, server.url_of(0), server.url_of(1), self.mail.url, "")

    def far_settings(self) -> dict[str, str]:
        """Reach PostgreSQL through links."""
        ports = [self.link(node.port) for node in (self.pair.primary, self.pair.standby)]
        hosts = ",".join(f"{LOOPBACK}:{port}" for port in ports)
        return {"ALLOCATION_DATABASE_URL": f"postgresql+psycopg2://allocation@{hosts}/allocation"}

    def heal(self) -> None:
        """Let the dead server follow the other one."""
        streaming = "SELECT 1 FROM pg_stat_replication WHERE state = 'streaming' AND sync_state = 'sync'"
        if self.pair.standby.running and self.pair.primary.ask(streaming):
            return
        self.pair.rebuild()


class SentinelWorld(ClusterWorld):
    """Redis with two replicas and three Sentinels for messages and results; one PostgreSQL."""

    forgets = True

    def start_servers(self, enter: Callable[[Any], Any]) -> Addresses:
        """Start them."""
        options = {"min-replicas-to-write": "1", "min-replicas-max-lag": "2"}
        self.sentinels: Sentinels = enter(Sentinels(self.folder / "sentinels", options, down_after_ms=2000))
        postgres = enter(Postgres(self.folder / "postgres", settings=POSTGRES))
        return Addresses(postgres.url, self.sentinels.url(0), self.sentinels.url(1), self.mail.url, "")

    def settings(self) -> dict[str, str]:
        """Return how Sentinel is asked."""
        return self.sentinels.settings

    def far_settings(self) -> dict[str, str]:
        """Nothing: Sentinel names the address."""
        return {}

    def heal(self) -> None:
        """Start what is down."""
        for server in (*self.sentinels.nodes, *self.sentinels.sentinels):
            if server.running:
                thaw(server.pid)
            elif isinstance(server, SentinelServer):
                server.start()
        self.sentinels.restart(*(node for node in self.sentinels.nodes if not node.running))
        self.sentinels.wait_until_whole()

    def results(self) -> redis.Redis:
        """Return a client of the primary's results."""
        hosts = [(LOOPBACK, one.port) for one in self.sentinels.sentinels]
        asked: Any = RedisSentinel(
            hosts,
            sentinel_kwargs=ASKED.options("sentinel://")["sentinel_kwargs"],
            socket_timeout=3,
        )
        client: redis.Redis = asked.master_for(MASTER, password=PASSWORD, db=1)
        return client

    def transport_options(self) -> dict[str, Any]:
        """Return the options of a plain sender."""
        return {**super().transport_options(), **ASKED.options(self.addresses.broker_url)}


class RabbitWorld(ClusterWorld):
    """Three nodes of RabbitMQ; one PostgreSQL, one Redis for results."""

    def start_servers(self, enter: Callable[[Any], Any]) -> Addresses:
        """Start them."""
        self.rabbits: RabbitMQCluster = enter(RabbitMQCluster(self.folder / "rabbits"))
        postgres = enter(Postgres(self.folder / "postgres", settings=POSTGRES))
        server = enter(Redis(self.folder / "redis"))
        return Addresses(postgres.url, self.rabbits.url, server.url_of(1), self.mail.url, "")

    def far_settings(self) -> dict[str, str]:
        """Reach RabbitMQ through links."""
        ports = [self.link(node.port) for node in self.rabbits.nodes]
        urls = (f"amqp://guest:guest@{LOOPBACK}:{port}//" for port in ports)
        return {"ALLOCATION_BROKER_URL": ";".join(urls)}

    def heal(self) -> None:
        """Start the nodes that are down, and restart one that the others gave up for good."""
        self._start(*(node for node in self.rabbits.nodes if not node.running))
        try:
            self.rabbits.wait_until_whole(REJOIN_S)
        except NotInTimeError:
            # A node that was frozen for longer than `net_ticktime` stays apart until it is restarted.
            apart = min(self.rabbits.nodes, key=running_nodes)
            apart.kill()
            self._start(apart)
            self.rabbits.wait_until_whole()

    @staticmethod
    def _start(*nodes: ClusterNode) -> None:
        for node in nodes:
            node.launch()
        for node in nodes:
            node.wait()

    def transport_options(self) -> dict[str, Any]:
        """Return the options of a plain sender."""
        return {"confirm_publish": True, "connect_timeout": 3, "read_timeout": 3, "write_timeout": 3}


WORLDS: dict[str, type[ClusterWorld]] = {
    "postgres": PostgresWorld,
    "sentinel": SentinelWorld,
    "rabbitmq": RabbitWorld,
}
