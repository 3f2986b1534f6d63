"""`make simulate`: play schedules until the time is up, or one again.

python -m tests.simulation --minutes 10                    fresh seeds
python -m tests.simulation --seed 7 --without 0,2 --choices 12:1,40:3    one, as a failing run prints it
python -m tests.simulation --mutations                     find each planted bug
python -m tests.simulation --redis --minutes 10            the Redis transport, in a world of its own
python -m tests.simulation --small                         all schedules of small cases
python -m tests.simulation --small "two faults" --minutes 10   of one level, as many as fit
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
import time
from collections.abc import Mapping
from itertools import count
from typing import Any

from tests.simulation.choices import recorded
from tests.simulation.mutations import MUTATIONS
from tests.simulation.redis.mutations import MUTATIONS as REDIS_MUTATIONS
from tests.simulation.redis.world import redis_world
from tests.simulation.run import A_MINUTE, Schedule, WronglyPlanted, hunt, measured, shrunk, story
from tests.simulation.server import simulated_world
from tests.simulation.small import LEVELS, play_all
from tests.simulation.world import World


def main() -> int:
    """Return 0 when every invariant held, or every planted bug was found."""
    options = _options()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # takes the servers down
    if options.redis:
        with redis_world() as world:
            return _run(world, options, REDIS_MUTATIONS)
    with simulated_world() as world:
        return _play_small(world, options) if options.small is not None else _run(world, options, MUTATIONS)


def _run(world: Any, options: argparse.Namespace, mutations: Mapping[str, Any]) -> int:
    if options.mutations is not None:
        return _find_bugs(world, options, mutations)
    if options.choices is not None or (options.seed is not None and not options.minutes):
        return _replay(world, options)
    return _hunt(world, options)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.simulation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--seed", type=int, help="play this schedule, or begin with it (with --minutes)")
    parser.add_argument("--steps", type=int, help="stop after so many steps altogether")
    parser.add_argument("--minutes", type=float, help="go on for so long (2)")
    parser.add_argument("--without", default="", help="numbers of commands that are left out")
    parser.add_argument("--choices", help="decisions that are not calm, as position:option,…")
    parser.add_argument("--mutations", nargs="?", const="", help="find planted bugs whose words contain this")
    parser.add_argument("--redis", action="store_true", help="play the Redis transport's world")
    parser.add_argument(
        "--small",
        nargs="?",
        const="",
        help="play all schedules of small cases, of the levels with these words",
    )
    return parser.parse_args()


def _hunt(world: Any, options: argparse.Namespace) -> int:
    first = random.randrange(10**9) if options.seed is None else options.seed
    print(f"seeds from {first}", flush=True)
    seconds, begun = 60 * (options.minutes or 2.0), time.monotonic()
    total = hunt(world, [])
    while (left := seconds - (time.monotonic() - begun)) > 0:
        some = hunt(world, count(first + total.schedules), min(left, 60.0))
        total.schedules, total.steps = total.schedules + some.schedules, total.steps + some.steps
        total.seconds = time.monotonic() - begun
        print(total, flush=True)
        if some.found and some.outcome:
            print(
                f"{_command(options)} {some.found}\n{some.outcome.failure}\nmaking it smaller …",
                flush=True,
            )
            found, outcome = shrunk(world, some.found, some.outcome)
            print(f"{story(outcome)}\n\n{_command(options)} {found}")
            return 1
        if options.steps and total.steps >= options.steps:
            break
    return 0


def _command(options: argparse.Namespace) -> str:
    return f"python -m tests.simulation{' --redis' if options.redis else ''}"


def _replay(world: Any, options: argparse.Namespace) -> int:
    left_out = tuple(int(number) for number in options.without.split(",") if number)
    choices = None if options.choices is None else recorded(options.choices)
    outcome = Schedule(options.seed or 0, left_out, choices).play(world)
    print(story(outcome))
    return 0 if outcome.failure is None else 1


def _play_small(world: World, options: argparse.Namespace) -> int:
    levels = (words for words in LEVELS if (options.small or "") in words)
    for name, played in play_all(world, levels, options.minutes and 60 * options.minutes):
        print(f"{name}: {played}", flush=True)
        if played.failed is not None:
            print(story(played.failed))
            return 1
    return 0


def _find_bugs(world: Any, options: argparse.Namespace, mutations: Mapping[str, Any]) -> int:
    missed = 0
    for words, plant in mutations.items():
        if options.mutations not in words:
            continue
        first, seconds = options.seed or 1, options.minutes and 60 * options.minutes
        try:
            with plant(world):
                result = measured(world, range(first, first + A_MINUTE), seconds)
        except WronglyPlanted as error:
            missed += 1
            print(f"| {words} | WRONGLY PLANTED: {error} |", flush=True)
            continue
        missed += result.found is None
        what = result.outcome.failure if result.outcome else "NOT FOUND"
        figures = f"{result.found or ''} | {result.schedules} | {result.seconds:.0f}"
        print(f"| {words} | {figures} | {str(what)[:100]} |", flush=True)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
