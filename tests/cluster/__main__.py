"""`make chaos-cluster`: real clusters on this machine, and what a fault of each kind costs and loses."""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from statistics import median

from testing.rabbitmq import find_binary
from tests.cluster.faults import FAULTS
from tests.cluster.rounds import Round, play
from tests.cluster.world import WORLDS

SHOWN = 8  # findings of a bad round
KINDS = {
    "postgres": "PostgreSQL, primary and synchronous standby",
    "sentinel": "Redis with two replicas and three Sentinels",
    "rabbitmq": "RabbitMQ, three nodes",
}


def main() -> int:
    """Run the rounds; return 0 if nothing was lost, doubled, broken or told wrongly, and no gap too long."""
    options = _options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # stops everything that was started
    print(f"seed {options.seed}", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="allocation-cluster-"))
    folder.chmod(0o755)  # the servers' own account passes through it
    done: list[Round] = []
    try:
        for kind in options.kind or WORLDS:
            if kind == "rabbitmq" and find_binary() is None:
                print("rabbitmq: NOT RUN, rabbitmq-server is not installed", flush=True)
                continue
            done += _rounds(options, kind, folder / kind)
    finally:
        print("\n".join(table(done)), flush=True)
        if done and all(one.good for one in done):
            shutil.rmtree(folder, ignore_errors=True)
        else:
            print(f"logs: {folder}")
    return 0 if done and all(one.good for one in done) else 1


def _rounds(options: argparse.Namespace, kind: str, folder: Path) -> Iterator[Round]:
    names = [name for name, fault in FAULTS.items() if fault.kind == kind]
    names = [name for name in names if not options.fault or name in options.fault]
    if not names:
        return
    with WORLDS[kind](folder) as world:
        for number in range(options.rounds):
            for position, name in enumerate(names):
                one = play(world, FAULTS[name], options.seed + number * len(names) + position)
                _show(one)
                yield one


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.cluster", description=__doc__)
    parser.add_argument("--rounds", type=int, default=1, help="rounds of each fault (%(default)s)")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6), help="of an earlier run")
    parser.add_argument("--kind", action="append", choices=sorted(WORLDS), help="only this kind; repeatable")
    parser.add_argument("--fault", action="append", choices=sorted(FAULTS), help="only this; repeatable")
    return parser.parse_args()


def _show(one: Round) -> None:
    print(
        f"{'ok ' if one.good else 'BAD'} {one.fault.name:34} seed {one.seed}: {one.commands} commands,"
        f" sent again {one.sent_again}, gap {one.gap_s:.1f} s, took {one.took_s:.0f} s",
        flush=True,
    )
    for finding in one.verdict.findings[:SHOWN]:
        print(f"    {finding}", flush=True)


def table(rounds: Iterable[Round]) -> Iterator[str]:
    """Yield the lines of docs/how-to/high-availability.md: a row per fault, gaps as median / worst."""
    rounds = list(rounds)
    yield "| fault | commands | lost | doubled | broken | answered, then lost | told wrongly | gap (s) |"
    yield "|---|---|---|---|---|---|---|---|"
    for kind, what in KINDS.items():
        if any(one.fault.kind == kind for one in rounds):
            yield f"| **{what}** | | | | | | | |"
        for name, fault in FAULTS.items():
            some = [one for one in rounds if one.fault.name == name and fault.kind == kind]
            if some:
                yield _row(fault.what, some)
    promised = [one for one in rounds if not one.fault.loses]
    if promised:
        yield _row("**all but asynchronous standbys**", promised)


def _row(what: str, some: list[Round]) -> str:
    gaps = [one.gap_s for one in some]
    cells = [
        sum(one.commands for one in some),
        sum(len(one.verdict.lost) for one in some),
        sum(len(one.verdict.doubled) for one in some),
        sum(len(one.verdict.broken) for one in some),
        sum(one.answered_then_lost for one in some),
        sum(one.told_wrongly for one in some),
        f"{median(gaps):.1f} / {max(gaps):.1f}",
    ]
    return f"| {what} | {' | '.join(map(str, cells))} |"


if __name__ == "__main__":
    sys.exit(main())
