"""`python -m tests.transactional_send --rounds 200`: kill app, relay and broker, and compare the books."""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import sys
import tempfile
from collections import Counter
from pathlib import Path

from tests.transactional_send.rounds import Round, play
from tests.transactional_send.tracing import lines
from tests.transactional_send.world import World


def main() -> int:
    """Play the rounds; 0 when every order came to what its customer was told."""
    parser = argparse.ArgumentParser(prog="python -m tests.transactional_send", description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--broker", choices=("redis", "rabbitmq"), default="redis")
    parser.add_argument("--broker-every", type=int, default=4, help="kill the broker in every so many rounds")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    print(f"seed {options.seed}", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="transactional-send-"))
    done: list[Round] = []
    try:
        with World(folder, options.broker) as world:
            for number in range(options.rounds):
                kill_broker = number % options.broker_every == 1
                done.append(play(world, number, options.seed, kill_broker=kill_broker))
                _show(done[-1])
    finally:
        print(table(options.broker, done, folder))
    good = bool(done) and not any(one.findings for one in done)
    if good:
        shutil.rmtree(folder, ignore_errors=True)
    else:
        print(f"logs: {folder}")
    return 0 if good else 1


def _show(one: Round) -> None:
    killed = ", ".join(f"{what} {count}x" for what, count in sorted(one.killed.items())) or "nothing"
    print(
        f"round {one.number} on {one.shop}: {sum(one.outcomes.values())} orders, killed {killed},"
        f" {one.seconds:.1f} s",
        flush=True,
    )
    for finding in one.findings:
        print(f"  WRONG: {finding}", flush=True)


def table(broker: str, done: list[Round], folder: Path) -> str:
    """Return what came of all rounds, as a table in Markdown."""
    killed, outcomes = Counter[str](), Counter[str]()
    for one in done:
        killed += one.killed
        outcomes += one.outcomes
    passed, stopped = lines(folder / "passed"), lines(folder / "killed")
    for point in sorted(passed - stopped):
        print(f"not killed at {point[:400]}")
    names = ("allocated", "refused", "out of stock")
    head = [
        "broker", "rounds", "orders", *names, "rolled back", "app killed", "relay killed",
        "broker killed", "places between statements", "of them killed at", "wrong",
    ]  # fmt: skip
    row = [
        broker, len(done), sum(outcomes.values()), *(outcomes[name] for name in names),
        sum(one.rolled_back for one in done), killed["app"], killed["relay"], killed["broker"],
        len(passed), len(passed & stopped), sum(len(one.findings) for one in done),
    ]  # fmt: skip
    parts = (head, ["---"] * len(head), [str(value) for value in row])
    return "\n".join("| " + " | ".join(part) + " |" for part in parts)


if __name__ == "__main__":
    sys.exit(main())
