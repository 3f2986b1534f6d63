"""The cost of traces, metrics and JSON logs: this backend with them, against itself without."""

from __future__ import annotations

import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from benchmarks.crew import Crew, crews
from benchmarks.figure import Figure, per_second, ratios
from benchmarks.peers import ours
from benchmarks.peers.ours_solo import on_servers_of_its_own
from benchmarks.peers.peer import Peer
from benchmarks.scale import Scale
from benchmarks.servers import Servers
from benchmarks.turns import sized_turn
from local.ports import LOOPBACK, free_port
from local.waiting import eventually

WHAT = "commands/s, prefork pool"
ALL_ON = "without traces, metrics and JSON logs"
GOAL = 0.9


@dataclass
class Sink:
    """A collector that throws away what it gets: the cost of a real one is not the worker's."""

    url: str
    requests: int = 0


@contextmanager
def sink() -> Iterator[Sink]:
    """Run a sink on a free port."""

    class Receiver(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            found.requests += 1
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer((LOOPBACK, 0), Receiver) as server:
        found = Sink(f"http://{LOOPBACK}:{server.server_port}")
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield found
        server.shutdown()


@dataclass(frozen=True)
class Kind:
    """A kind of telemetry: its settings, and how it is seen that it is on."""

    name: str
    what: str  # it is compared with
    env: dict[str, str]
    is_on: Callable[[Crew], bool]
    goal: float | None = None


def measure(servers: Servers, scale: Scale) -> list[Figure]:
    """Take turns, all of them in the prefork pool; then prove that each kind was on."""
    with sink() as collector:
        kinds = _kinds(collector)
        off = on_servers_of_its_own("untold", "without telemetry", 0, ours.publish)
        told = [_peer(kind, 2 * n) for n, kind in enumerate(kinds, 1)]
        rates: dict[str, list[float]] = {peer.name: [] for peer in (off, *told)}
        with crews([off, *told], servers, scale.processes) as workers:
            for number in range(scale.rounds):
                for crew in workers:
                    turn = sized_turn(crew, f"{crew.peer.name}-{number}", scale)
                    rates[crew.peer.name].append(turn.rate)
            for kind, crew in zip(kinds, workers[1:], strict=True):
                crew.resume()
                eventually(lambda kind=kind, crew=crew: kind.is_on(crew), 30, f"{kind.name} to be on")  # type: ignore[misc]
                crew.pause()
    return [
        Figure(
            f"telemetry_{kind.name}", f"{WHAT}, {kind.name}", kind.what, kind.goal, at_least=True,
            ratios=ratios(rates[peer.name], rates[off.name]),
            measured=per_second(rates[peer.name], rates[off.name], "commands"),
            why="Spans are made, encoded and sent by the process that handles the message.",
        )
        for kind, peer in zip(kinds, told, strict=True)
    ]  # fmt: skip


def _kinds(collector: Sink) -> list[Kind]:
    metrics = {"ALLOCATION_METRICS_ADDRESS": f"{LOOPBACK}:{free_port()}"}
    traces, json_log = {"ALLOCATION_TRACES_URL": collector.url}, {"ALLOCATION_LOG_FORMAT": "json"}
    one_in_ten = {"OTEL_TRACES_SAMPLER": "parentbased_traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.1"}
    own = {"ALLOCATION_METRICS_ADDRESS": f"{LOOPBACK}:{free_port()}"}
    sampled = {"ALLOCATION_METRICS_ADDRESS": f"{LOOPBACK}:{free_port()}"}

    def counts(address: str) -> bool:
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=5) as answer:
            return b"allocation_command_seconds_count" in answer.read()

    def exports(_crew: Crew) -> bool:
        return collector.requests > 0

    def everything(where: dict[str, str]) -> Callable[[Crew], bool]:
        return lambda crew: exports(crew) and _logs_json(crew) and counts(where["ALLOCATION_METRICS_ADDRESS"])

    return [
        Kind("metrics", ALL_ON, metrics, lambda _crew: counts(metrics["ALLOCATION_METRICS_ADDRESS"])),
        Kind("JSON logs", ALL_ON, json_log, _logs_json),
        Kind("every order traced", ALL_ON, traces, exports),
        Kind("all on, every order traced", ALL_ON, {**own, **traces, **json_log}, everything(own), GOAL),
        Kind(
            "all on, one order in ten traced",
            ALL_ON,
            {**sampled, **traces, **json_log, **one_in_ten},
            everything(sampled),
            GOAL,
        ),
    ]


def _logs_json(crew: Crew) -> bool:
    return any('"event.outcome": "done"' in child.log.read_text(errors="replace") for child in crew.children)


def _peer(kind: Kind, database: int) -> Peer:
    name = "told_" + "".join(letter if letter.isalnum() else "_" for letter in kind.name.lower())
    peer = on_servers_of_its_own(name, kind.name, database, ours.publish)
    return replace(peer, env={**peer.env, **kind.env})
