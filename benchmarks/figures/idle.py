"""Many idle consumers on one Redis queue: what a message costs Redis, and how soon it arrives."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import redis
from kombu import Connection

from benchmarks.figure import Figure, percentile, ratios
from benchmarks.peers.peer import redis_url
from benchmarks.scale import Scale
from benchmarks.servers import Servers
from local.processes.child import Child
from local.waiting import eventually
from messaging.brokers import topology

CONSUMERS = (10, 50, 200)
A_PROCESS = 25  # consumers
RATE = 50.0  # messages a second, so that the consumers are idle nearly always
SETTLE_S = 2.5  # after the side that had not its turn was resumed
GOAL_MS = 10.0  # latency
AGAINST = "stock Celery's transport"
WHY = "A message wakes one of the watching consumers for nothing, and a sleeping one to watch."


@dataclass
class Side:
    """One transport: its consumers, and its figures of each round."""

    name: str
    transport: str
    database: int
    options: dict[str, Any]
    folder: Path
    children: list[Child] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)  # of Redis per message
    p50_ms: list[float] = field(default_factory=list)
    p99_ms: list[float] = field(default_factory=list)
    scripts: list[float] = field(default_factory=list)  # calls per message
    commands: list[float] = field(default_factory=list)  # per message

    def start(self, count: int) -> None:
        """Start so many consumers."""
        for first in range(0, count, A_PROCESS):
            some = min(A_PROCESS, count - first)
            arguments = [self.transport, redis_url(self.database), f"idle{count}", str(some)]
            arguments += [str(self._times(first)), json.dumps(self.options)]
            command = [sys.executable, "-m", "benchmarks.consumers", *arguments]
            log = self.folder / f"{self.name}-{count}-{first}.log"
            child = Child(f"{self.name} consumers", command, log=log, env=dict(os.environ))
            child.start()
            self.children.append(child)
        for child in self.children:
            eventually(lambda child=child: "consumers" in child.log_text(), 60, child.name)  # type: ignore[misc]
        self.signal(signal.SIGSTOP)

    def signal(self, number: signal.Signals) -> None:
        """Pause or resume the consumers."""
        for child in self.children:
            os.kill(child.pid, number)

    def measure(self, count: int, seconds: float) -> None:
        """Send messages to resumed consumers."""
        self.signal(signal.SIGCONT)
        time.sleep(SETTLE_S)
        for times in self.folder.glob(f"{self.name}-*.times"):
            times.write_text("")
        messages = max(10, int(RATE * seconds))
        with redis.Redis.from_url(redis_url(self.database)) as client:
            client.config_resetstat()
            before = _cpu_s(client)
            _send(redis_url(self.database), f"idle{count}", messages)
            heard = eventually(lambda: self._heard(messages), 60, "all messages", every=0.01)
            used, calls = _cpu_s(client) - before, _calls(client)
        self.signal(signal.SIGSTOP)
        self.cpu_ms.append(used * 1000 / messages)
        self.p50_ms.append(percentile(heard, 0.5))
        self.p99_ms.append(percentile(heard, 0.99))
        self.scripts.append(sum(n for name, n in calls.items() if name.startswith("eval")) / messages)
        self.commands.append(sum(calls.values()) / messages)

    def _heard(self, messages: int) -> list[float]:
        """Return all latencies; empty until they are complete."""
        texts = (file.read_text() for file in self.folder.glob(f"{self.name}-*.times"))
        found = [float(line) for text in texts for line in text.split()]
        return found if len(found) >= messages else []

    def _times(self, first: int) -> Path:
        return self.folder / f"{self.name}-{first}.times"


def measure(servers: Servers, scale: Scale) -> list[Figure]:
    """Take turns with so many consumers, then with more."""
    figures: list[Figure] = []
    for count in CONSUMERS:
        with _sides(servers, count) as (ours, stock):
            for number in range(scale.rounds):
                for side in (ours, stock) if number % 2 else (stock, ours):
                    side.measure(count, scale.latency_s)
        figures += _figures(count, ours, stock)
    return figures


@contextmanager
def _sides(servers: Servers, count: int) -> Iterator[tuple[Side, Side]]:
    url = redis_url(0)
    options = topology.transport_options(url, 40, 10.0, "idle")
    folder = servers.folder / f"idle-{count}"
    folder.mkdir()
    ours = Side("ours", str(topology.transport(url)), 0, options, folder)
    stock = Side("stock", "redis", 2, {}, folder)
    with ExitStack() as stack:
        for side in (ours, stock):
            stack.callback(lambda side=side: [child.kill() for child in side.children])  # type: ignore[misc]
            side.start(count)
        yield ours, stock


def _send(url: str, queue: str, messages: int) -> None:
    """Send at the rate, as a stock app does."""
    with Connection(url) as connection:
        producer = connection.Producer()
        start = time.monotonic()
        for number in range(messages):
            time.sleep(max(0.0, start + number / RATE - time.monotonic()))
            headers = {"sent_at": repr(time.time())}
            producer.publish({}, exchange="", routing_key=queue, headers=headers, declare=())


def _cpu_s(client: redis.Redis) -> float:
    info: Any = client.info("cpu")
    return float(info["used_cpu_sys"]) + float(info["used_cpu_user"])


def _calls(client: redis.Redis) -> dict[str, int]:
    """Return how often each command was called, by clients and by scripts."""
    info: Any = client.info("commandstats")
    return {name.removeprefix("cmdstat_"): int(facts["calls"]) for name, facts in info.items()}


def _figures(count: int, ours: Side, stock: Side) -> list[Figure]:
    what = f"{count} idle consumers: "
    calls = f"; {median(ours.scripts):.1f} : {median(stock.scripts):.1f} script calls"
    last = count == CONSUMERS[-1]
    figures = [
        Figure(
            f"idle_cpu_{count}", f"{what}CPU of Redis per message", AGAINST, 1.0 if last else None,
            at_least=False, ratios=ratios(ours.cpu_ms, stock.cpu_ms), why=WHY,
            measured=f"{median(ours.cpu_ms):.2f} : {median(stock.cpu_ms):.2f} ms{calls}",
        ),
        Figure(
            f"idle_p50_{count}", f"{what}send → received, p50", AGAINST, None, at_least=False,
            ratios=ratios(ours.p50_ms, stock.p50_ms),
            measured=f"{median(ours.p50_ms):.1f} : {median(stock.p50_ms):.1f} ms",
        ),
        Figure(
            f"idle_p99_{count}", f"{what}send → received, p99", AGAINST, None, at_least=False,
            ratios=ratios(ours.p99_ms, stock.p99_ms),
            measured=f"{median(ours.p99_ms):.1f} : {median(stock.p99_ms):.1f} ms",
        ),
    ]  # fmt: skip
    if last:
        figures.append(
            Figure(
                "idle_latency", f"{what}send → received, p50", f"{GOAL_MS:g} ms", 1.0, at_least=False,
                ratios=tuple(value / GOAL_MS for value in ours.p50_ms),
                measured=f"{median(ours.p50_ms):.1f} ms",
            )
        )  # fmt: skip
    return figures
