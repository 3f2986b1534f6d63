"""The cost of single settings: this backend with its defaults, against itself with one setting changed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from benchmarks import stock
from benchmarks.crew import crews
from benchmarks.figure import Figure, per_second, ratios
from benchmarks.peers import ours
from benchmarks.peers.ours_solo import on_servers_of_its_own
from benchmarks.peers.peer import Peer
from benchmarks.scale import Scale
from benchmarks.servers import Servers
from benchmarks.turns import take_turn

#: The changed setting, and its Celery configuration.
TURNED = {
    "without task events (no Flower)": "worker_send_task_events=false",
    "without stored results": "task_ignore_result=true",
    "log level WARNING": "--loglevel=WARNING",
    "prefetch 1": "worker_prefetch_multiplier=1",
    "prefetch 16": "worker_prefetch_multiplier=16",
    "without gossip, mingle and heartbeat": "--without-gossip --without-mingle --without-heartbeat",
}
NO_HIREDIS = "without hiredis"
WHAT = "commands/s, prefork pool, default settings"


def measure(servers: Servers, scale: Scale) -> list[Figure]:
    """Take turns, all of them in the prefork pool."""
    as_it_comes = _peer("as_it_comes", 0)
    turned = {what: _peer(f"turned{n}", 2 * n, change) for n, (what, change) in enumerate(TURNED.items(), 1)}
    turned[NO_HIREDIS] = _without_hiredis(servers.folder)
    rates: dict[str, list[float]] = {peer.name: [] for peer in (as_it_comes, *turned.values())}
    with crews([as_it_comes, *turned.values()], servers, scale.processes) as workers:
        for number in range(scale.rounds):
            for crew in workers:
                lines = stock.lines(f"{crew.peer.name}-{number}", scale.lines)
                rates[crew.peer.name].append(take_turn(crew, lines).rate)
    ours_rates = rates[as_it_comes.name]
    return [
        Figure(
            f"settings_{peer.name}", WHAT, what, None, at_least=True,
            ratios=ratios(ours_rates, rates[peer.name]),
            measured=per_second(ours_rates, rates[peer.name], "commands"),
        )
        for what, peer in turned.items()
    ]  # fmt: skip


def _peer(name: str, database: int, change: str = "") -> Peer:
    options = [part for part in change.split() if part.startswith("--")]
    config = [part for part in change.split() if not part.startswith("--")]
    peer = on_servers_of_its_own(name, name, database, ours.publish)
    workers = ours.workers
    return replace(
        peer,
        workers=lambda processes: [[*arguments, *options, "--", *config] for arguments in workers(processes)],
    )


def _without_hiredis(folder: Path) -> Peer:
    """Return a peer in which importing hiredis fails."""
    shadow = folder / "no_hiredis"
    shadow.mkdir(exist_ok=True)
    (shadow / "hiredis.py").write_text("raise ImportError('left out to measure without it')\n")
    peer = _peer("no_hiredis", 2 * len(TURNED) + 2)
    return replace(peer, env={**peer.env, "PYTHONPATH": str(shadow)})
