"""A RabbitMQ cluster of three nodes on loopback; its quorum queues have a member on each."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from local.ports import LOOPBACK, free_port, is_free
from local.processes.child import Child
from local.waiting import eventually
from testing.freezing import thaw
from testing.rabbitmq import RabbitMQ

COOKIE = "NOTSECRETONLOOPBACK"
SIZE = 3


@dataclass
class ClusterNode(RabbitMQ):
    """One node; it joins the others when it first starts. Its name server belongs to the cluster."""

    peers: list[ClusterNode] = field(default_factory=list, repr=False)

    def launch(self) -> None:
        """Start the node, and do not wait until it answers."""
        self.folder = self.folder.resolve()
        (self.folder / "home").mkdir(parents=True, exist_ok=True)
        cookie = self.folder / "home" / ".erlang.cookie"
        if not cookie.exists():
            cookie.write_text(COOKIE)
            cookie.chmod(0o400)
        lines = ["cluster_formation.peer_discovery_backend = classic_config"]
        lines += [
            f"cluster_formation.classic_config.nodes.{n + 1} = {peer.name}"
            for n, peer in enumerate(self.peers)
        ]
        lines += ["cluster_partition_handling = pause_minority"]
        self.config = "\n".join(lines) + "\n"
        self._child = self._prepare()
        self._child.start()

    @property
    def name(self) -> str:
        """Return the Erlang node's name."""
        return self._node

    def start(self) -> Self:
        """Start the node, and return when it answers."""
        self.launch()
        return self.wait()

    def wait(self) -> Self:
        """Return when it answers."""
        if self._child is not None:
            self._wait_ready(self._child)
        return self

    def ask(self, *arguments: str) -> str:
        """Run rabbitmqctl on this node and return what it prints."""
        command = [str(self._binary().with_name("rabbitmqctl")), "-n", self._node, *arguments]
        child = Child("rabbitmqctl", command, log=self.folder / "rabbitmqctl.log", env=self._environment())
        child.start()
        eventually(lambda: not child.running, 60, f"rabbitmqctl {arguments[0]}")
        if child.exit_code:
            raise child.ended_early()
        return child.log_text()

    def _environment(self) -> dict[str, str]:
        # Peers that vanish without closing their connections are given up after some 8 s, not 60.
        return {
            **super()._environment(),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-start_epmd false -kernel net_ticktime 8",
        }


@dataclass
class RabbitMQCluster:
    """Three nodes and their name server; a context manager."""

    folder: Path

    def __post_init__(self) -> None:
        """Plan them."""
        self.epmd_port = free_port()
        self.nodes = [ClusterNode(self.folder / f"rabbit{n}", epmd_port=self.epmd_port) for n in range(SIZE)]
        for node in self.nodes:
            node.peers = self.nodes
        self._epmd = Child(
            "epmd",
            ["epmd", "-port", str(self.epmd_port), "-address", LOOPBACK],
            log=self.folder / "epmd.log",
        )

    @property
    def url(self) -> str:
        """Return the list of all addresses."""
        return ";".join(node.url for node in self.nodes)

    def __enter__(self) -> Self:
        """Start all, and wait until they are one cluster."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._epmd.start()
            eventually(lambda: not is_free(self.epmd_port), what="epmd")
            for node in self.nodes:
                node.launch()
            for node in self.nodes:
                node.wait()
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
        for node in self.nodes:
            if node.running:
                thaw(node.pid)
                node.kill()
        self._epmd.stop()

    def wait_until_whole(self, timeout_s: float = 120.0) -> None:
        """Wait until every node sees all others."""
        names = [node.name for node in self.nodes]
        for node in self.nodes:
            eventually(
                lambda node=node: running_nodes(node) >= len(names),  # type: ignore[misc]
                timeout_s,
                f"a cluster of {len(names)} seen from {node.name}",
                every=1.0,
            )

    def leader_of(self, queue: str) -> ClusterNode:
        """Return the node with the leader of a quorum queue."""
        asked = next(node for node in self.nodes if node.running)
        text = asked.ask("list_queues", "name", "pid", "--silent")
        line = next(line for line in text.splitlines() if line.startswith(f"{queue}\t"))
        return next(node for node in self.nodes if node.name in line)


def running_nodes(node: ClusterNode) -> int:
    """Return how many nodes of the cluster a node sees, itself included."""
    status: Any = json.loads(node.ask("cluster_status", "--formatter=json"))
    return len(status["running_nodes"])
