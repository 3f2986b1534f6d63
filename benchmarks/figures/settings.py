"""The cost of single settings: this backend with its defaults, against itself with one setting changed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import redis
from celery import Celery
from kombu import Connection

from benchmarks import stock
from benchmarks.crew import Crew, crews
from benchmarks.figure import Figure, per_second, ratios
from benchmarks.peers import ours
from benchmarks.peers.ours_solo import on_servers_of_its_own
from benchmarks.peers.peer import Line, Peer
from benchmarks.scale import Scale
from benchmarks.servers import Servers
from benchmarks.turns import sized_turn
from local.waiting import eventually

WHAT = "commands/s, prefork pool, default settings"


@dataclass(frozen=True)
class Change:
    """A changed setting: its command line, and how its effect is seen from outside after a turn.

    Celery accepts settings that change nothing, so the setting itself proves nothing.
    """

    what: str
    options: tuple[str, ...]  # of the worker; those after `--` are Celery settings
    has_effect: Callable[[Crew], bool]
    publish: Callable[[Sequence[Line], Celery], object] = ours.publish


def _publish_without_results(lines: Sequence[Line], sender: Celery) -> None:
    """Have the sender want no results; workers read the setting before their command line."""
    for line in lines:
        ours.send(line, sender, ignore_result=True)


def _stored_results(crew: Crew) -> int:
    with redis.Redis.from_url(crew.peer.env["ALLOCATION_RESULT_BACKEND_URL"]) as client:
        return sum(1 for _ in client.scan_iter("celery-task-meta-*"))


def _logged(crew: Crew, text: str) -> bool:
    return any(text in child.log.read_text(errors="replace") for child in crew.children)


def _events(crew: Crew) -> int:
    """Return how many task events the workers report for ten lines."""
    seen: list[str] = []
    with (
        Celery(broker=crew.peer.env["ALLOCATION_BROKER_URL"], set_as_current=False) as app,
        app.connection() as connection,
    ):
        receiver = app.events.Receiver(connection, handlers={"*": lambda event: seen.append(event["type"])})
        with receiver.consumer_context() as (listening, _, _):
            _drain(listening)  # subscribes
            done = crew.done()
            crew.peer.publish(stock.lines(f"{crew.peer.name}-events", 10))
            eventually(lambda: crew.done() >= done + 10, 30, "ten lines")
            _drain(listening)
    return sum(kind.startswith("task-") for kind in seen)


def _drain(connection: Connection) -> None:
    """Take messages until none has come for a second."""
    with suppress(TimeoutError):
        while True:
            connection.drain_events(timeout=1)


def _prefetch(crew: Crew) -> int:
    with Celery(broker=crew.peer.env["ALLOCATION_BROKER_URL"], set_as_current=False) as app:
        stats = app.control.inspect(timeout=5, limit=1).stats() or {}
    return next((int(each["prefetch_count"]) for each in stats.values()), -1)


def _has_hiredis(crew: Crew) -> bool:
    code = "from redis.utils import HIREDIS_AVAILABLE as has; raise SystemExit(not has)"
    return not subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **crew.peer.env}, check=False
    ).returncode


DEFAULT = Change(
    "default settings",
    (),
    lambda crew: (
        _stored_results(crew) > 0
        and _logged(crew, "Handled ")
        and _logged(crew, "mingle: ")
        and _events(crew) > 0
        and _has_hiredis(crew)
    ),
)


def _prefetches(count: int, processes: int) -> Change:
    """Change the prefetch; as a Celery setting it would come too late."""
    return Change(
        f"prefetch {count}",
        (f"--prefetch-multiplier={count}",),
        lambda crew: _prefetch(crew) == count * processes,
    )


def _changes(processes: int) -> list[Change]:
    return [
        Change(
            "without task events (no Flower)",
            ("--", "worker_send_task_events=false"),
            lambda crew: _events(crew) == 0,
        ),
        Change(
            "without stored results",
            (),
            lambda crew: _stored_results(crew) == 0,
            _publish_without_results,
        ),
        Change("log level WARNING", ("--loglevel=WARNING",), lambda crew: not _logged(crew, "Handled ")),
        *(_prefetches(count, processes) for count in (1, 16)),
        Change(
            "without gossip, mingle and heartbeat",
            ("--without-gossip", "--without-mingle", "--without-heartbeat"),
            lambda crew: not _logged(crew, "mingle: "),
        ),
        Change("without hiredis", (), lambda crew: not _has_hiredis(crew)),
    ]


def measure(servers: Servers, scale: Scale) -> list[Figure]:
    """Take turns, all of them in the prefork pool; then prove that each setting took effect."""
    changes = _changes(scale.processes)
    default = _peer("as_it_comes", 0, DEFAULT)
    turned = [_peer(f"turned{n}", 2 * n, change) for n, change in enumerate(changes, 1)]
    turned[-1] = _without_hiredis(turned[-1], servers.folder)
    rates: dict[str, list[float]] = {peer.name: [] for peer in (default, *turned)}
    with crews([default, *turned], servers, scale.processes) as workers:
        for number in range(scale.rounds):
            for crew in workers:
                turn = sized_turn(crew, f"{crew.peer.name}-{number}", scale)
                rates[crew.peer.name].append(turn.rate)
        for change, crew in zip([DEFAULT, *changes], workers, strict=True):
            _prove(change, crew)
    ours_rates = rates[default.name]
    return [
        Figure(
            f"settings_{peer.name}", WHAT, change.what, None, at_least=True,
            ratios=ratios(ours_rates, rates[peer.name]),
            measured=per_second(ours_rates, rates[peer.name], "commands"),
        )
        for change, peer in zip(changes, turned, strict=True)
    ]  # fmt: skip


def _prove(change: Change, crew: Crew) -> None:
    crew.resume()
    proved = change.has_effect(crew)
    crew.pause()
    if not proved:
        raise RuntimeError(f"{change.what}: the setting took no effect, so its figure would mean nothing")


def _peer(name: str, database: int, change: Change) -> Peer:
    peer = on_servers_of_its_own(name, name, database, change.publish)
    workers = ours.workers
    return replace(
        peer,
        workers=lambda processes: [[*arguments, *change.options] for arguments in workers(processes)],
    )


def _without_hiredis(peer: Peer, folder: Path) -> Peer:
    """Return a peer in which importing hiredis fails."""
    shadow = folder / "no_hiredis"
    shadow.mkdir(exist_ok=True)
    (shadow / "hiredis.py").write_text("raise ImportError('left out to measure without it')\n")
    return replace(peer, env={**peer.env, "PYTHONPATH": str(shadow)})
