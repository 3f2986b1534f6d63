"""Redis with two replicas and three Sentinels on loopback."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import redis

from local.ports import LOOPBACK, free_port
from local.processes.child import Child
from local.servers.accounts import account_for, give, let_pass
from local.servers.redis_server import Redis, find_binary
from local.servers.server import Server
from local.waiting import eventually
from testing.freezing import thaw

MASTER = "stock"
QUORUM = 2
SENTINEL_PASSWORD = "not-secret-1"  # noqa: S105  # made up for tests
PASSWORD = "not-secret-2"  # noqa: S105  # made up for tests
Front = Callable[[int], int]


def same(port: int) -> int:
    """Return the port itself: no proxy."""
    return port


@dataclass
class Node(Redis):
    """A Redis with a password, that may follow another one."""

    follows: Node | None = None
    options: dict[str, str] = field(default_factory=dict)
    front: Front = same

    @cached_property
    def announced(self) -> int:
        """Return the port at which others reach it."""
        return self.front(self.port)

    def _prepare(self) -> Child:
        child = super()._prepare()
        options = {"--requirepass": PASSWORD, "--masterauth": PASSWORD, "--repl-diskless-sync-delay": "0"}
        options["--replica-announce-port"] = str(self.announced)
        options |= {f"--{name}": value for name, value in self.options.items()}
        if self.follows is not None:
            options["--replicaof"] = f"{LOOPBACK} {self.follows.announced}"
        child.command = [*child.command, *(part for option in options.items() for part in option)]
        return child

    def client(self) -> redis.Redis:
        """Return a client."""
        return redis.Redis(host=LOOPBACK, port=self.port, password=PASSWORD, socket_timeout=1)

    def _answers(self) -> bool:
        with self.client() as client:
            return bool(client.ping())


@dataclass
class SentinelServer(Server):
    """One Sentinel."""

    watches: Node | None = None
    down_after_ms: int = 1500
    front: Front = same

    @cached_property
    def announced(self) -> int:
        """Return the port at which clients reach it."""
        return self.front(self.port)

    @property
    def url(self) -> str:
        """Return its own address."""
        return f"redis://{LOOPBACK}:{self.port}"

    def client(self) -> redis.Redis:
        """Return a client of the Sentinel itself."""
        return redis.Redis(host=LOOPBACK, port=self.port, password=SENTINEL_PASSWORD, socket_timeout=1)

    def _prepare(self) -> Child:
        if self.watches is None:
            raise RuntimeError("a Sentinel without a Redis to watch")
        binary, data = find_binary(), self.folder / "data"
        account = account_for(data)
        give(data, account)
        if account is not None:
            let_pass(binary)
        config = data / "sentinel.conf"
        if not config.exists():
            config.write_text(
                f"bind {LOOPBACK}\nport {self.port}\ndir .\nrequirepass {SENTINEL_PASSWORD}\n"
                f"sentinel sentinel-pass {SENTINEL_PASSWORD}\n"
                f"sentinel monitor {MASTER} {LOOPBACK} {self.watches.announced} {QUORUM}\n"
                f"sentinel auth-pass {MASTER} {PASSWORD}\n"
                f"sentinel down-after-milliseconds {MASTER} {self.down_after_ms}\n"
                f"sentinel failover-timeout {MASTER} 5000\n"
            )
            give(config.parent, account)
            if account is not None:
                os.chown(config, account.pw_uid, account.pw_gid)
        return Child(
            "sentinel",
            [str(binary), "sentinel.conf", "--sentinel"],
            log=self.folder / "sentinel.log",
            cwd=data,
            user=account,
            death_signal=signal.SIGTERM,
        )

    def _answers(self) -> bool:
        with self.client() as client:
            return bool(client.ping())


@dataclass
class Sentinels:
    """A primary, two replicas, three Sentinels; a context manager."""

    folder: Path
    options: dict[str, str] = field(default_factory=dict)  # of both Redis
    down_after_ms: int = 1500
    #: Opens a proxy to a port and returns its port; clients know no other ports.
    front: Front = same
    scheme: str = "sentinel"

    def __post_init__(self) -> None:
        """Plan them."""
        common: Any = {"options": self.options, "front": self.front}
        one = Node(self.folder / "one", **common)
        replicas = (Node(self.folder / name, follows=one, **common) for name in ("two", "three"))
        self.nodes = [one, *replicas]
        self.sentinels = [
            SentinelServer(
                self.folder / f"sentinel{n}",
                free_port(),
                watches=one,
                down_after_ms=self.down_after_ms,
                front=self.front,
            )
            for n in range(3)
        ]

    def url(self, database: int) -> str:
        """Return the address of a database for workers."""
        hosts = (f"{LOOPBACK}:{one.announced}" for one in self.sentinels)
        return ";".join(f"{self.scheme}://:{PASSWORD}@{host}/{database}" for host in hosts)

    @property
    def settings(self) -> dict[str, str]:
        """Return the settings of a backend on them."""
        return {
            "ALLOCATION_BROKER_URL": self.url(0),
            "ALLOCATION_RESULT_BACKEND_URL": self.url(1),
            "ALLOCATION_SENTINEL_MASTER": MASTER,
            "ALLOCATION_SENTINEL_PASSWORD": SENTINEL_PASSWORD,
        }

    def __enter__(self) -> Self:
        """Start all, and wait until the Sentinels know each other and the replicas."""
        try:
            for server in (*self.nodes, *self.sentinels):
                server.start()
            self.wait_until_whole()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop all."""
        self.stop()

    def stop(self) -> None:
        """Stop all; frozen ones are thawed first."""
        for server in (*self.sentinels, *self.nodes):
            if server.running:
                thaw(server.pid)
                server.kill()

    def wait_until_whole(self) -> None:
        """Wait until every Sentinel knows the others and healthy replicas, which follow the primary."""
        eventually(lambda: all(map(self._is_whole, self.sentinels)), 60, "Sentinels that agree")
        primary = self.primary
        eventually(lambda: _replicas(primary) == len(self.nodes) - 1, 60, "replicas that follow")

    def _is_whole(self, sentinel: SentinelServer) -> bool:
        with sentinel.client() as client:
            state: Any = client.sentinel_masters()[MASTER]
            replicas: Any = client.sentinel_slaves(MASTER)
        healthy = [one for one in replicas if not one["is_sdown"] and not one["is_disconnected"]]
        return bool(
            state["num-other-sentinels"] == len(self.sentinels) - 1
            and len(healthy) == len(self.nodes) - 1
            and not state["is_sdown"]
        )

    @property
    def primary(self) -> Node:
        """Return the node that the first Sentinel that answers names."""
        for sentinel in self.sentinels:
            with suppress(redis.RedisError), sentinel.client() as client:
                _, port = client.sentinel_get_master_addr_by_name(MASTER)
                return next(node for node in self.nodes if node.announced == int(port))
        raise RuntimeError("no Sentinel answers")

    @property
    def replicas(self) -> list[Node]:
        """Return the others."""
        primary = self.primary
        return [node for node in self.nodes if node is not primary]

    def restart(self, *replicas: Node) -> None:
        """Start replicas that were killed; they follow the primary, as their rewritten configuration says."""
        primary = self.primary
        for replica in replicas:
            replica.follows = primary
            replica.start()

    def fail_over(self, *how: str) -> None:
        """Make another node the primary, and wait for it."""
        old = self.primary
        with self.sentinels[0].client() as client:
            client.execute_command("SENTINEL", "FAILOVER", MASTER, *how)
        self.wait_for_failover(old)

    def demote(self, old: Node) -> None:
        """Have a former primary follow the new one at once; Sentinel waits 8 s before it does that."""
        with old.client() as client:
            client.execute_command("REPLICAOF", LOOPBACK, self.primary.announced)

    def wait_for_failover(self, old: Node) -> None:
        """Wait until the Sentinels name another node, and it is a primary."""
        eventually(lambda: self.primary is not old and _role(self.primary) == "master", 60, "another primary")


def _replicas(node: Node) -> int:
    with node.client() as client:
        info: Any = client.info("replication")
    return sum(
        info.get(f"slave{n}", {}).get("state") == "online" for n in range(int(info["connected_slaves"]))
    )


def _role(node: Node) -> str:
    with node.client() as client:
        info: Any = client.info("replication")
    return str(info["role"])
