"""Latency at half load: from send to result, and from commit to the start of the event's handler."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks import stock
from benchmarks.crew import Crew, crews
from benchmarks.figure import Figure, percentile, ratios
from benchmarks.pace import Listener, Send, sending
from benchmarks.peers import ours, plain_celery
from benchmarks.peers.peer import Peer, redis_url
from benchmarks.scale import Scale
from benchmarks.servers import Servers
from benchmarks.turns import sized_turn
from local.waiting import eventually

SOLD_OUT = "SOLD-OUT"
SKUS = [f"SKU-{number:04}" for number in range(stock.SKUS)]
GROUPS = ours.GROUPS["groups of 16"]  # on: they must not cost latency
WHY_RESULT = "Half a millisecond of both is the sender's; most of the rest is Celery, the same on both sides."
WHY_HANDLER = "A delivery is claimed and finished in PostgreSQL, with a commit to disk; a plain task is not."


@dataclass(frozen=True)
class Side:
    """One of the two sides: its app, its tasks, its result database, and its measured milliseconds."""

    crew: Crew
    send_one: Send
    results: int
    probe: Path
    result_p50: list[float] = field(default_factory=list)
    result_p99: list[float] = field(default_factory=list)
    handler_p50: list[float] = field(default_factory=list)
    handler_p99: list[float] = field(default_factory=list)

    def measure(self, rate: float, seconds: float) -> None:
        """Send at this rate to running workers: first commands that succeed, then some that raise events."""
        self.crew.resume()
        times = self._send_and_hear(rate, seconds, SKUS)
        self.result_p50.append(percentile(times, 0.5))
        self.result_p99.append(percentile(times, 0.99))
        for old in self.probe.glob("*.probe"):
            old.write_text("")
        count = len(self._send_and_hear(rate / 2, seconds, [SOLD_OUT]))
        times = eventually(lambda: self._handler_times(count), 60, "the handlers of all events")
        self.handler_p50.append(percentile(times, 0.5))
        self.handler_p99.append(percentile(times, 0.99))
        self.crew.pause()

    def _send_and_hear(self, rate: float, seconds: float, skus: Sequence[str]) -> list[float]:
        """Return the milliseconds from send to result of every command."""
        count = max(10, int(rate * seconds))
        with Listener(redis_url(self.results)) as listener:
            with sending(self.send_one, skus, rate, count):
                eventually(lambda: len(listener) >= count, seconds + 60, "all results")
            return listener.take()

    def _handler_times(self, count: int) -> list[float]:
        """Return the milliseconds from commit to start; empty until all handlers have started."""
        sent: dict[str, float] = {}
        began: dict[str, float] = {}
        for file in self.probe.glob("*.probe"):
            for line in file.read_text().splitlines():
                what, task_id, at = line.split()
                (sent if what == "sent" else began)[task_id] = float(at)
        times = [(at - sent[task_id]) * 1000 for task_id, at in began.items() if task_id in sent]
        return times if len(times) >= count else []


def measure(servers: Servers, scale: Scale) -> list[Figure]:
    """Take turns at half of plain Celery's top rate."""
    servers.rows("INSERT INTO products (sku) VALUES (%s)", (SOLD_OUT,))
    mine, plain = _peer("ours", ours.workers, servers), _peer("plain_celery", plain_celery.workers, servers)
    with crews([mine, plain], servers, scale.processes) as [our_crew, plain_crew]:
        rate = sized_turn(plain_crew, "limit", scale).rate / 2
        us = Side(our_crew, ours.send_one, 1, _folder(servers, "ours"))
        them = Side(plain_crew, _send_plain, 3, _folder(servers, "plain_celery"))
        for number in range(scale.rounds):
            for side in (us, them) if number % 2 else (them, us):
                side.measure(rate, scale.latency_s)
    return [
        _figure("result_p50", "send → result, p50", us.result_p50, them.result_p50, rate),
        _figure("result_p99", "send → result, p99", us.result_p99, them.result_p99, rate),
        _figure("handler_p50", "commit → handler started, p50", us.handler_p50, them.handler_p50, rate / 2),
        _figure("handler_p99", "commit → handler started, p99", us.handler_p99, them.handler_p99, rate / 2),
    ]


def _peer(name: str, workers: Callable[[int], list[list[str]]], servers: Servers) -> Peer:
    """Return a peer whose workers record when follow-up messages are sent and when handlers start."""
    included = {"ours": "benchmarks.probe", "plain_celery": "benchmarks.probe,benchmarks.peers.plain_chain"}
    publish = {"ours": ours.peer, "plain_celery": plain_celery.peer}[name]
    return replace(
        publish,
        workers=lambda processes: [
            [*arguments, "--include", included[name]] for arguments in workers(processes)
        ],
        env={"BENCHMARK_PROBE_FOLDER": str(_folder(servers, name)), **(GROUPS if name == "ours" else {})},
    )


def _folder(servers: Servers, name: str) -> Path:
    folder = servers.folder / "probe" / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _send_plain(task_id: str, sku: str) -> None:
    plain_celery.app.send_task("plain.allocate_or_tell", (task_id, sku, 1), task_id=task_id)


def _figure(key: str, what: str, mine: Sequence[float], others: Sequence[float], rate: float) -> Figure:
    middle = len(mine) // 2
    return Figure(
        key,
        f"{what}, groups of 16, half load ({rate:.0f}/s)",
        "plain Celery",
        0.9 if key.startswith("result") else 1.1,
        at_least=False,
        ratios=ratios(mine, others),
        measured=f"{sorted(mine)[middle]:.1f} : {sorted(others)[middle]:.1f} ms",
        why=WHY_HANDLER if key.startswith("handler") else WHY_RESULT,
    )
