"""One round: orders flow, something breaks, everything comes to rest, and the books are checked."""

from __future__ import annotations

import random
import time
from contextlib import suppress
from dataclasses import dataclass

from local.databases import empty_database
from local.waiting import NotInTimeError, eventually
from tests.chaos.faults import Fault
from tests.chaos.invariants import Verdict, check
from tests.chaos.traffic import Traffic
from tests.chaos.world import World

#: How long a sender waits for an answer before it sends again. Where the broker forgets, that is its only
#: way on; elsewhere it must never be needed, and a command that needs it counts as lost.
PATIENCE_S = 8.0
LONG_PATIENCE_S = 60.0
CALM_TIMEOUT_S = 120.0
BURST = 60


@dataclass(frozen=True)
class Round:
    """What a round came to."""

    fault: str
    seed: int
    commands: int
    sent_again: int  # for want of an answer
    tried_again: int  # since the answer was "Unavailable", or the broker was away
    next_answer_s: float  # from the end of the fault to the answer of the first command sent after it
    all_answered_s: float  # from the end of the fault until nothing sent before it waits
    calm_s: float  # from the end of the traffic until every delivery has ended
    verdict: Verdict

    @property
    def good(self) -> bool:
        """Tell whether nothing was lost, doubled or broken."""
        return self.verdict.good


def play(world: World, fault: Fault, seed: int, seconds: float = 3.0) -> Round:
    """Break one thing at a random moment of a load, and see what is left."""
    rng = random.Random(f"{fault.name} {seed}")
    patience = PATIENCE_S if fault.forgets else LONG_PATIENCE_S
    traffic = Traffic(world.addresses, rng, f"r{seed}", patience_s=patience)
    empty_database(world.addresses.database_url)
    world.mail.mails.clear()
    traffic.start()
    try:
        time.sleep(rng.uniform(0.5, seconds))
        # So that the workers' hands are full when it happens.
        traffic.burst(BURST)
        time.sleep(rng.uniform(0.02, 0.2))
        fault.run(world, traffic, rng)
        healed = time.monotonic()
        time.sleep(seconds)
        traffic.stop_sending()
        calm = _wait_for_calm(world, traffic)
    finally:
        traffic.close()
    return _summary(world, fault, seed, traffic, healed, calm)


def _wait_for_calm(world: World, traffic: Traffic) -> float:
    """Wait until everything has ended; what has not is for the check to tell. Returns seconds."""
    start = time.monotonic()
    at_work = "SELECT id FROM deliveries WHERE status = 'pending' OR (status = 'failed' AND crashes = 0)"
    with suppress(NotInTimeError):
        eventually(lambda: not traffic.open and not world.ask(at_work), CALM_TIMEOUT_S, "calm", every=0.1)
    return time.monotonic() - start


def _summary(world: World, fault: Fault, seed: int, traffic: Traffic, healed: float, calm: float) -> Round:
    sent = list(traffic.sent.values())
    verdict = check(world, sent)
    again = sum(one.timed_out for one in sent)
    if not fault.forgets:
        verdict.lost += [f"sent again for want of an answer: {one}" for one in sent if one.timed_out]
    after = [one.answered_at - healed for one in sent if one.answered_at and one.first_sent_at >= healed]
    before = [one.answered_at - healed for one in sent if one.answered_at and one.first_sent_at < healed]
    return Round(
        fault=fault.name,
        seed=seed,
        commands=len(sent),
        sent_again=again,
        tried_again=sum(one.times - 1 - one.timed_out for one in sent),
        next_answer_s=min(after, default=float("nan")),
        all_answered_s=max(0.0, *before) if before else 0.0,
        calm_s=calm,
        verdict=verdict,
    )
