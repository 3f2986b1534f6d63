"""Messages that arrived together are handled in one transaction, each undone alone (docs/adr/012)."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, takewhile
from typing import Generic, Protocol, TypeVar

import psycopg2.errors

from messaging.errors import describe
from messaging.messages import Message
from messaging.postgres.shared import PATIENCE_MS, SharedTransaction
from messaging.postgres.transaction import DATABASE_ERRORS
from messaging.project.runtime import Runtime

logger = logging.getLogger(__name__)

#: Seconds after which no further message of a group begins: locks are held until the group's end.
LONGEST_GROUP_S = 1.0

#: What handling a message came to.
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Unit(Protocol[T_co]):
    """A message that may share a transaction."""

    @property
    def id(self) -> str:
        """Return the id of the message."""

    @property
    def message(self) -> Message:
        """Return the command or the event."""

    def run(self, transaction: SharedTransaction, /) -> T_co | None:
        """Handle it in its place of the transaction; None if it has to be handled alone.

        Raises:
            DATABASE_ERRORS: all of the transaction is lost.
        """


U = TypeVar("U", bound=Unit[object])


@dataclass(frozen=True)
class Done(Generic[T]):
    """What a message came to, and how long that took with what it shared: the reading ahead, the commit."""

    outcome: T
    seconds: float


def handle_together(runtime: Runtime, units: Iterable[Unit[T]]) -> dict[str, Done[T]]:
    """Handle messages in as few transactions as possible; return what was committed, by message id.

    The others have to be handled alone.
    """
    left, done, until = list(units), dict[str, Done[T]](), last_begin(runtime)
    patient_until: float | None = None
    while left and time.monotonic() < until:
        try:
            with SharedTransaction(runtime.engine, _patience_ms(left, patient_until)) as transaction:
                rest, some = handle_in(transaction, runtime, left, until)
        except DATABASE_ERRORS as error:
            log_failed(len(left), error)
            break
        except Exception:
            logger.exception("A group of %d messages is handled one by one", len(left))
            break
        left, done = rest, done | some
        patient_until = patient_until or time.monotonic() + PATIENCE_MS / 1000
    return done


def last_begin(runtime: Runtime) -> float:
    """Return until when messages of a group begin, by the monotonic clock; its time limit is that of one."""
    return time.monotonic() + min(LONGEST_GROUP_S, runtime.settings.task_time_limit_s / 3)


def handle_in(
    transaction: SharedTransaction, runtime: Runtime, units: Iterable[Unit[T]], until: float
) -> tuple[list[Unit[T]], dict[str, Done[T]]]:
    """Handle messages in a transaction and commit it; return those that were not begun, and what was done.

    Raises:
        DATABASE_ERRORS: nothing was committed, or that is not known.
    """
    done, begun = dict[str, Done[T]](), set[str]()
    ordered, started, alone = in_lock_order(units), time.perf_counter(), 0.0
    for unit in _in_waves(transaction, runtime, ordered):
        if begun and time.monotonic() > until:
            break
        began = time.perf_counter()
        try:
            outcome = unit.run(transaction)
        except psycopg2.errors.LockNotAvailable:
            if not begun:
                raise
            break  # commit, so that nobody waits for our locks while we wait
        finally:
            seconds = time.perf_counter() - began
            alone += seconds
        begun.add(unit.id)
        if outcome is not None:
            done[unit.id] = Done(outcome, seconds)
    transaction.commit_all()
    shared = time.perf_counter() - started - alone
    rest = [unit for unit in ordered if unit.id not in begun]
    return rest, {key: replace(one, seconds=one.seconds + shared) for key, one in done.items()}


def log_failed(count: int, error: BaseException) -> None:
    """Log why a group was given up."""
    logger.info("A group of %d messages is handled one by one: %s", count, describe(error))


def in_lock_order(units: Iterable[U]) -> list[U]:
    """Sort by aggregate, so that groups lock in the same order; one aggregate's messages keep theirs.

    A message that does not say what it locks stays where it is, and so does what is on either side of it.
    """
    ordered: list[U] = []
    for says, run in groupby(units, key=lambda one: one.message.locks is not None):
        some = list(run)
        ordered += sorted(some, key=lambda one: _key(one.message)) if says else some
    return ordered


def _patience_ms(units: Iterable[Unit[object]], until: float | None) -> int | None:
    """Return how long a lock may be waited for; None where nobody waits for the group's end.

    Once some are done they wait for their answers, `until` then for all locks together. Before that, other
    aggregates wait for their turn.
    """
    if until is not None:
        return max(1, int(1000 * (until - time.monotonic())))
    return PATIENCE_MS if len({_aggregate(unit) for unit in units}) > 1 else None


def _aggregate(unit: Unit[object]) -> tuple[bool, str]:
    """Return what a message locks; a message that does not say so counts as another aggregate."""
    says = unit.message.locks is not None
    return says, _key(unit.message) if says else unit.id


def _key(message: Message) -> str:
    return str(getattr(message, message.locks or ""))


def _in_waves(
    transaction: SharedTransaction, runtime: Runtime, units: Sequence[Unit[T]]
) -> Iterator[Unit[T]]:
    """Yield messages, those first that can be read for together; end before those that others have locked.

    Who waits for a lock while it holds others makes everybody wait. Only where nothing else can begin is such
    a message yielded, and waits.
    """
    left, locked, read = list(units), set[str](), runtime.project.read_ahead
    while left:
        following = _following(left)
        wave: list[Unit[T]] = []
        if read is not None and len(following) > 1:  # alone it is no faster
            found, skipped = transaction.read_ahead(read, [unit.message for unit in following])
            wave = [following[place] for place in sorted(found)]
            locked = {following[place].id for place in skipped}
        wave = wave or [unit for unit in following if unit.id not in locked][:1]
        if not wave and following and len(left) < len(units):
            return
        wave = wave or left[:1]
        yield from wave
        begun = {unit.id for unit in wave}
        left = [unit for unit in left if unit.id not in begun]


def _following(units: Iterable[Unit[T]]) -> list[Unit[T]]:
    """Return the next message of each aggregate: the one after it depends on what that changes.

    Only those before any that does not say what it locks: that one may change the same.
    """
    following: dict[str, Unit[T]] = {}
    for unit in takewhile(lambda one: one.message.locks is not None, units):
        following.setdefault(_key(unit.message), unit)
    return list(following.values())
