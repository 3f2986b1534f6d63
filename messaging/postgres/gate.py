"""An attempt that asks first whether its delivery may run now, and puts it aside if not. (docs/adr/023)"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from messaging.delivery import Delivery, Failure, Status, Waits
from messaging.options import NO_OPTIONS, HandlerOptions, Rate
from messaging.postgres import breakers
from messaging.postgres.attempts import CLAIM_COLUMNS, CLAIM_FROM, Attempt
from messaging.postgres.limits import begin, reserve, take_place
from messaging.postgres.order import OPEN
from messaging.postgres.pauses import Pause, first_stop
from messaging.postgres.transaction import Statement, Transaction
from messaging.postgres.waiting import Wait, hold
from messaging.retry import RetryPolicy

#: The time that a pending delivery had reserved, or at which its message was sent again.
WOKEN_FOR = "due_at - make_interval(secs => grace_s)"

#: As `CLAIM`, with what holds the delivery back. That need not be as fresh as the lock: an earlier delivery
#: of the lane that was open may be done by now, but none becomes open again, and none is inserted before it.
CLAIM_GATED = Statement(
    f"""
SELECT {CLAIM_COLUMNS}, lane, waits_for, EXISTS (
    SELECT FROM deliveries earlier WHERE earlier.lane = deliveries.lane AND earlier.handler = ANY($2)
    AND earlier.position < deliveries.position AND earlier.{OPEN}),
    CASE WHEN waits_for = 'rate' AND {WOKEN_FOR} > clock_timestamp() THEN {WOKEN_FOR} END,
    (SELECT max(until) FROM breakers WHERE breakers.handler = ANY($2)),
    (SELECT max(until) > clock_timestamp() FROM breakers WHERE breakers.handler = ANY($2))
{CLAIM_FROM}""",
    *("uuid", "text[]"),
)

NEEDS_NEW_TIME = "UPDATE deliveries SET waits_for = NULL WHERE id = %(id)s AND waits_for = 'rate'"

#: Retries of a handler whose breaker is half-open.
NEVER_THE_LAST = 10**9


@dataclass(frozen=True)
class Gate:
    """What may make a handler's deliveries wait."""

    names: Sequence[str]  # the handler's current one, and those that it had before
    options: HandlerOptions = NO_OPTIONS  # with the settings' values where the handler has none
    pauses: Sequence[Pause] = ()

    def limit_key(self, delivery: Delivery) -> str:
        """Return the value whose limits count; empty if those of the handler do."""
        name = self.options.limit_by
        return str(delivery.payload.get(name, ""))[:200] if name else ""

    def limit(self, key: str) -> str:
        """Return the name under which places and times are taken."""
        return f"{self.names[0]}:{key}"


@dataclass
class GatedAttempt(Attempt):
    """An attempt of a handler that has a gate."""

    gate: Gate = field(default_factory=lambda: Gate(()))
    lane: str | None = None
    key: str = ""  # whose limits count
    has_place: bool = False  # whether it took one, or waits for one
    ended_pause: bool = False  # it succeeded as a trial
    was_woken: bool = False  # for a time of its rate
    needs_time: bool = False  # of its rate
    has_time: bool = False  # it took one
    until: datetime | None = None  # the time of its rate, if it is later than now

    def claim(self, transaction: Transaction) -> Delivery | None:
        """Lock the delivery and return it; None also when it has to wait, which uses up no attempt."""
        delivery = self._claim(transaction)
        if delivery is None or not self.needs_time or self.gate.options.rate is None:
            return delivery
        # Its time stays taken, whatever becomes of the attempt, so that is a transaction of its own.
        transaction.commit()
        take = begin if self.was_woken else reserve
        self.until = take(transaction, self.gate.limit(self.key), Rate.parse(self.gate.options.rate))
        self.delivery, self.has_time = None, True
        return self._claim(transaction)

    def _claim(self, transaction: Transaction) -> Delivery | None:
        names = list(self.gate.names)
        rows = transaction.read(CLAIM_GATED, (self.id, names))
        if not rows:
            return None
        [row] = rows
        *facts, self.has_open, self.waited_s, self.lane, waits_for, is_blocked, later, until, is_open = row
        self.delivery = delivery = Delivery(*facts)
        if delivery.handler not in names:
            return delivery
        self.was_woken, self.until = waits_for == Waits.RATE, self.until or later
        wait = self._stopped(delivery, is_blocked, until if is_open else None) or self._limited(
            transaction, delivery, until
        )
        if wait is None:
            return delivery
        self.mark_redelivered(transaction)
        hold(transaction, self.id, wait)
        self.delivery = None
        return None

    def finish(self, transaction: Transaction, result: object) -> None:
        """Write `done`, and tell the breaker."""
        super().finish(transaction, result)
        if self.gate.options.breaker is not None:
            succeeded = breakers.TRIAL_SUCCEEDED if self.is_trial else breakers.SUCCEEDED
            names = list(self.gate.names)
            transaction.write(succeeded, {"handler": names[0], "names": names})
            self.ended_pause = self.is_trial

    def fail(
        self,
        transaction: Transaction,
        failure: Failure,
        policy: RetryPolicy,
        grace_s: float,
        error: BaseException | None = None,
    ) -> Status | None:
        """Count the attempt, and tell the breaker; while that is open, the delivery waits."""
        options = self.gate.options
        breaker = None if options.breaker and isinstance(error, options.breaker.ignore) else options.breaker
        self.is_trial = self.is_trial and breaker is not None
        transaction.undo()
        if options.rate is not None:
            transaction.write(NEEDS_NEW_TIME, {"id": self.id})
        if self.is_trial:
            policy = replace(policy, max_retries=NEVER_THE_LAST)
        status = self.count_failure(transaction, failure, policy, grace_s)
        if breaker is not None:
            facts = (self.gate.names, breaker, failure.error)
            until = breakers.count_failure(transaction, *facts, is_trial=self.is_trial)
            if until is not None and status is Status.PENDING:
                hold(transaction, self.id, Wait(Waits.BREAKER, until))
        transaction.commit()
        return status

    def _stopped(self, delivery: Delivery, is_blocked: bool, open_until: datetime | None) -> Wait | None:
        """Return what stops the handler, or blocks the delivery's key."""
        options = self.gate.options
        if first_stop(self.gate.pauses, self.gate.names, delivery.event_type):
            return Wait(Waits.PAUSE)
        # Only the first of a key waits for the breaker: after its pause nothing else can be tried.
        if options.in_order_by is not None and is_blocked:
            return Wait(Waits.ORDER)
        if options.breaker is not None and open_until is not None:
            return Wait(Waits.BREAKER, open_until)
        return None

    def _limited(self, transaction: Transaction, delivery: Delivery, until: datetime | None) -> Wait | None:
        """Take a trial and a place, and note if a time is needed. Return what there is none of."""
        gate, options = self.gate, self.gate.options
        self.is_trial = self.needs_time = False
        if options.breaker is not None and until is not None:
            self.is_trial = take_place(transaction, f"{gate.names[0]} trial", options.breaker.trials or 1)
            if not self.is_trial:
                return Wait(Waits.BREAKER)
        self.key = gate.limit_key(delivery)
        if options.max_concurrent is not None:
            self.has_place = True
            if not take_place(transaction, gate.limit(self.key), options.max_concurrent):
                return Wait(Waits.PLACE, key=self.key)
        if options.rate is not None and self.until is not None:
            return Wait(Waits.RATE, self.until)
        self.needs_time = options.rate is not None and not self.has_time
        return None
