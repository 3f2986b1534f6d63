"""`make chaos` runs all faults; `python -m tests.chaos --fault NAME --rounds 40 --seed 7` runs one."""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from tests.chaos.faults import FAULTS, Fault
from tests.chaos.report import show_round, show_table
from tests.chaos.rounds import Round, play
from tests.chaos.world import World


def main() -> int:
    """Run the rounds; return 0 if nothing was lost, doubled, answered wrongly or broken."""
    options = _options()
    # SIGTERM stops everything that was started.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    print(f"seed {options.seed}", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="allocation-chaos-"))
    done: list[Round] = []
    try:
        with World(folder, options.broker) as world:
            for number, fault in enumerate(_plan(options, world.has)):
                done.append(play(world, fault, options.seed + number))
                show_round(done[-1])
    finally:
        show_table(done)
        if done and all(one.good for one in done):
            shutil.rmtree(folder, ignore_errors=True)
        else:
            print(f"logs: {folder}")
    return 0 if done and all(one.good for one in done) else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--rounds", type=int, default=1, help="rounds of each fault (%(default)s)")
    parser.add_argument(
        "--seed",
        type=int,
        default=random.randrange(10**6),
        help="seed of an earlier run, to repeat its choices",
    )
    parser.add_argument(
        "--minutes", type=float, help="start no round after this time, whatever --rounds says"
    )
    parser.add_argument(
        "--broker", choices=("redis", "rabbitmq"), default="redis", help="default: %(default)s"
    )
    parser.add_argument(
        "--fault", action="append", choices=sorted(FAULTS), help="run only this fault; repeatable"
    )
    return parser.parse_args()


def _plan(options: argparse.Namespace, has: set[str]) -> Iterator[Fault]:
    """Yield every fault that this world supports, in random order, round after round."""
    end = time.monotonic() + options.minutes * 60 if options.minutes else None
    rng = random.Random(options.seed)
    names: Iterable[str] = options.fault or [
        fault.name for fault in FAULTS.values() if not fault.needs or fault.needs in has
    ]
    for _ in range(10**9 if end else options.rounds):
        for name in rng.sample(sorted(names), len(list(names))):
            if end and time.monotonic() > end:
                return
            yield FAULTS[name]


if __name__ == "__main__":
    sys.exit(main())
