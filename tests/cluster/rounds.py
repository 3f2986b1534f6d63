"""One round: a load, a fault, and what it came to; the checks are those of the chaos run."""

from __future__ import annotations

import random
import time
from contextlib import suppress
from dataclasses import dataclass

from local.waiting import NotInTimeError, eventually
from testing.databases import empty_database
from tests.chaos.invariants import Verdict, check
from tests.chaos.rounds import ANSWERED_AFTER, CALM_TIMEOUT_S
from tests.cluster.faults import ClusterFault
from tests.cluster.traffic import ClusterTraffic, TypedTraffic
from tests.cluster.world import ClusterWorld

RATE = 25.0  # commands a second
#: How long a sender waits for an answer before it sends again: longer than a failover takes, since a sender
#: that is less patient adds to the load just then.
PATIENCE_S = 15.0
LONG_PATIENCE_S = 90.0
NOT_DONE = ", not done:"  # in the finding about a success whose command is not in the database


@dataclass(frozen=True)
class Round:
    """The outcome of a round."""

    fault: ClusterFault
    seed: int
    commands: int
    sent_again: int
    gap_s: float  # the longest time without a result or a refusal
    took_s: float
    verdict: Verdict

    @property
    def answered_then_lost(self) -> int:
        """Return how many senders were told a success of which the database knows nothing."""
        return sum(NOT_DONE in finding for finding in self.verdict.told_wrongly)

    @property
    def told_wrongly(self) -> int:
        """Return how many senders were told anything else that is not so."""
        return len(self.verdict.told_wrongly) - self.answered_then_lost

    @property
    def good(self) -> bool:
        """Return whether nothing was wrong, and nobody waited for longer than promised."""
        lost = [*self.verdict.lost, *self.verdict.doubled] if self.fault.loses else self.verdict.findings
        return not lost and self.gap_s <= self.fault.limit_s


def play(world: ClusterWorld, fault: ClusterFault, seed: int) -> Round:
    """Break one thing at a random moment of a load, check the outcome, and make the cluster whole."""
    start = time.monotonic()
    rng = random.Random(f"{fault.name} {seed}")
    patience = PATIENCE_S if world.forgets else LONG_PATIENCE_S
    empty_database(world.addresses.database_url)
    world.mail.mails.clear()
    senders = TypedTraffic if fault.typed else ClusterTraffic
    traffic = senders(world, rng, f"r{seed}", patience)
    traffic.rate = RATE
    traffic.start()
    try:
        eventually(lambda: traffic.answered_since(0) >= ANSWERED_AFTER, 60, "the first answers")
        time.sleep(rng.uniform(0.1, 0.6))
        begin = time.monotonic()
        failure = _break(world, fault, traffic, rng)
        over = time.monotonic()
        with suppress(NotInTimeError):
            eventually(lambda: traffic.done_since(over) >= ANSWERED_AFTER, LONG_PATIENCE_S)
        gap_s = traffic.longest_gap_s(begin, time.monotonic())
        traffic.stop_sending()
        world.heal()
        _wait_for_calm(world, traffic)
        verdict = check(world, traffic, forgets=world.forgets)
    finally:
        traffic.close()
    verdict.broken += failure
    return Round(
        fault=fault,
        seed=seed,
        commands=len(traffic.sent),
        sent_again=sum(one.timed_out for one in traffic.messages),
        gap_s=gap_s,
        took_s=time.monotonic() - start,
        verdict=verdict,
    )


def _break(
    world: ClusterWorld, fault: ClusterFault, traffic: ClusterTraffic, rng: random.Random
) -> list[str]:
    try:
        fault.run(world, traffic, rng)
    except NotInTimeError as error:
        return [str(error)]
    return []


def _wait_for_calm(world: ClusterWorld, traffic: ClusterTraffic) -> None:
    at_work = "SELECT id FROM deliveries WHERE finished_at IS NULL OR (status = 'failed' AND crashes = 0)"
    with suppress(NotInTimeError):
        eventually(lambda: not traffic.open and not world.ask(at_work), CALM_TIMEOUT_S, "calm", every=0.1)
