"""Before the race: the fastest of each competitor's usual settings on this machine."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import replace
from statistics import median

from benchmarks import pgbench
from benchmarks.crew import crews
from benchmarks.peers.peer import Peer, Programs
from benchmarks.scale import Scale
from benchmarks.servers import Servers
from benchmarks.turns import sized_turn

CLIENTS = (2, 4, 8, 16)  # of pgbench


def at_its_best(peer: Peer, servers: Servers, scale: Scale) -> Peer:
    """Return the peer, prepared, with the fastest of its usual settings, or as it is if it names none."""
    peer.prepare()
    peer = replace(peer, prepare=lambda: None)
    tried = [_with(peer, settings, programs) for settings, programs in peer.choices(scale.processes).items()]
    if not tried:
        return peer
    rates = {choice.settings: _rate(choice, servers, scale) for choice in tried}
    print(f"{peer.name}: {_shown(rates.items())}", file=sys.stderr, flush=True)
    return max(tried, key=lambda choice: rates[choice.settings])


def best_clients(servers: Servers, scale: Scale) -> int:
    """Return the number of clients with which pgbench is fastest."""
    rates = {
        clients: pgbench.run(
            servers.folder, servers.postgres.url, clients, 4 * scale.lines, f"search-{clients}"
        )
        for clients in CLIENTS
    }
    print(f"pgbench: {_shown(rates.items())}", file=sys.stderr, flush=True)
    return max(rates, key=lambda clients: rates[clients])


def _with(peer: Peer, settings: str, programs: Programs) -> Peer:
    more = next((env for end, env in peer.choices_env.items() if settings.endswith(end)), {})
    return replace(peer, settings=settings, workers=lambda _cores: programs, env={**peer.env, **more})


def _rate(peer: Peer, servers: Servers, scale: Scale) -> float:
    """Return the median of a few turns; no other workers run."""
    name = f"{peer.name}-{peer.settings}"
    scale = replace(scale, turn_s=scale.search_s)
    with crews([peer], servers, scale.processes) as [crew]:
        rates = [sized_turn(crew, f"{name}-{number}", scale).rate for number in range(scale.search_rounds)]
    # What the killed workers held must not reach those of the next settings.
    servers.flush_redis()
    return median(rates)


def _shown(rates: Iterable[tuple[object, float]]) -> str:
    return ", ".join(f"{settings}: {rate:,.0f}/s" for settings, rate in rates)
