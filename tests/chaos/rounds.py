"""One round: orders flow, something breaks, everything comes to rest, and the books are checked."""

from __future__ import annotations

import random
import time
from contextlib import suppress
from dataclasses import dataclass

from local.waiting import NotInTimeError, eventually
from testing.databases import empty_database
from tests.chaos.fault import Fault
from tests.chaos.invariants import Verdict, check
from tests.chaos.traffic import Traffic
from tests.chaos.world import World

#: How long a sender waits for an answer before it sends again. Where the broker forgets, that is its only
#: way on; elsewhere it must never be needed, and a command that needs it counts as lost.
PATIENCE_S = 5.0
LONG_PATIENCE_S = 60.0
CALM_TIMEOUT_S = 120.0
#: After a kill the messages of a worker come again within its lease; Redis' own death may take longer.
REDELIVERY_S = 8.0
BURST = 60
#: A round goes on after its fault until so many later messages are answered.
ANSWERED_AFTER = 25


@dataclass(frozen=True)
class Round:
    """What a round came to."""

    fault: str
    seed: int
    commands: int
    repeats: int  # commands that came under the key of an earlier message
    sent_again: int  # for want of an answer
    next_answer_s: float  # from the end of the fault to the answer of the first command sent after it
    all_answered_s: float  # from the end of the fault until nothing sent before it waits
    calm_s: float  # from the end of the traffic until every delivery has ended
    took_s: float
    verdict: Verdict

    @property
    def good(self) -> bool:
        """Tell whether nothing was wrong."""
        return not self.verdict.findings


def play(world: World, fault: Fault, seed: int) -> Round:
    """Break one thing at a random moment of a load, and see what is left."""
    start = time.monotonic()
    rng = random.Random(f"{fault.name} {seed}")
    patience = PATIENCE_S if fault.forgets else LONG_PATIENCE_S
    # RabbitMQ itself removes what has expired, and answers nobody (tests/e2e/test_rabbitmq.py).
    may_expire = "redis" in world.has and not fault.bends_time
    traffic = Traffic(world.addresses, rng, f"r{seed}", patience, may_expire)
    empty_database(world.addresses.database_url)
    world.mail.mails.clear()
    if world.neighbour is not None:
        world.neighbour.send(rng)
    traffic.start()
    try:
        failure = _break(world, fault, traffic, rng)
        healed = time.monotonic()
        with suppress(NotInTimeError):  # what has no answer is for the check to tell
            eventually(lambda: traffic.answered_since(healed) >= ANSWERED_AFTER, LONG_PATIENCE_S)
        traffic.stop_sending()
        calm = _wait_for_calm(world, traffic)
    finally:
        traffic.close()
    if world.neighbour is not None and fault.breaks_redis:
        world.neighbour.forget()
    verdict = check(world, traffic, forgets=fault.forgets)
    verdict.broken += failure
    return _summary(fault, seed, traffic, healed, calm, start, verdict)


def _break(world: World, fault: Fault, traffic: Traffic, rng: random.Random) -> list[str]:
    """Have it happen while the workers' hands are full; return what should have followed and did not."""
    time.sleep(rng.uniform(0.3, 1.0))
    traffic.burst(BURST)
    time.sleep(rng.uniform(0.02, 0.2))
    try:
        fault.run(world, traffic, rng)
    except NotInTimeError as error:
        return [str(error)]
    return []


def _wait_for_calm(world: World, traffic: Traffic) -> float:
    """Wait until everything has ended; what has not is for the check to tell. Returns seconds."""
    start = time.monotonic()
    at_work = "SELECT id FROM deliveries WHERE status = 'pending' OR (status = 'failed' AND crashes = 0)"
    with suppress(NotInTimeError):
        eventually(lambda: not traffic.open and not world.ask(at_work), CALM_TIMEOUT_S, "calm", every=0.1)
    with suppress(NotInTimeError):  # answered, not acknowledged: it comes again, and must change nothing
        eventually(lambda: not world.holds_messages_of(traffic.prefix), REDELIVERY_S, "silence", every=0.1)
    return time.monotonic() - start


def _summary(
    fault: Fault, seed: int, traffic: Traffic, healed: float, calm: float, start: float, verdict: Verdict
) -> Round:
    sent = traffic.messages
    after = [one.answered_at - healed for one in sent if one.answered_at and one.first_sent_at >= healed]
    before = [one.answered_at - healed for one in sent if one.answered_at and one.first_sent_at < healed]
    keys = [one.key for one in traffic.sent]
    return Round(
        fault=fault.name,
        seed=seed,
        commands=len(keys),
        repeats=len(keys) - len(set(keys)),
        sent_again=sum(one.timed_out for one in sent),
        next_answer_s=min(after, default=float("nan")),
        all_answered_s=max(0.0, *before) if before else 0.0,
        calm_s=calm,
        took_s=time.monotonic() - start,
        verdict=verdict,
    )
