"""One round: run a load, break something, wait until everything is settled, and check the database."""

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

#: How long a sender waits for an answer before it sends again. If the broker forgets messages, it must do so;
#: otherwise this must never be necessary, and a command that needs it counts as lost.
PATIENCE_S = 5.0
LONG_PATIENCE_S = 60.0
CALM_TIMEOUT_S = 120.0
#: A killed worker's messages are redelivered within its lease; after a crash of Redis it may take longer.
REDELIVERY_S = 8.0
BURST = 60
#: A round continues after its fault until this many later messages are answered.
ANSWERED_AFTER = 25


@dataclass(frozen=True)
class Round:
    """The outcome of a round."""

    fault: str
    seed: int
    commands: int
    repeats: int  # commands with the key of an earlier message
    sent_again: int  # after no answer
    next_answer_s: float  # from the end of the fault to the answer of the first command sent after it
    all_answered_s: float  # from the end of the fault until everything sent before it is answered
    calm_s: float  # from the end of the traffic until every delivery has ended
    took_s: float
    verdict: Verdict

    @property
    def good(self) -> bool:
        """Return whether nothing was wrong."""
        return not self.verdict.findings


def play(world: World, fault: Fault, seed: int) -> Round:
    """Break one thing at a random moment of a load, and check the outcome."""
    start = time.monotonic()
    rng = random.Random(f"{fault.name} {seed}")
    patience = PATIENCE_S if fault.forgets else LONG_PATIENCE_S
    # RabbitMQ itself drops expired messages without an answer (tests/e2e/test_rabbitmq.py).
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
        with suppress(NotInTimeError):  # the check reports messages without an answer
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
    """Trigger the fault while the workers are busy; return the missing consequences."""
    time.sleep(rng.uniform(0.3, 1.0))
    traffic.burst(BURST)
    time.sleep(rng.uniform(0.02, 0.2))
    try:
        fault.run(world, traffic, rng)
    except NotInTimeError as error:
        return [str(error)]
    return []


def _wait_for_calm(world: World, traffic: Traffic) -> float:
    """Wait until everything has ended, and return the seconds; the check reports what has not."""
    start = time.monotonic()
    at_work = (
        "SELECT id::text FROM deliveries WHERE finished_at IS NULL OR (status = 'failed' AND crashes = 0)"
        " UNION ALL SELECT filter::text FROM bulk_reruns"
    )
    with suppress(NotInTimeError):
        eventually(lambda: not traffic.open and not world.ask(at_work), CALM_TIMEOUT_S, "calm", every=0.1)
    with suppress(NotInTimeError):  # answered, not acknowledged: it is redelivered, and must change nothing
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
