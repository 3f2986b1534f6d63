"""Commands that arrived together share a transaction, each behind a savepoint (docs/adr/012).

Their answers are kept until their tasks ask for them, which happens at once. A command without an answer here
is carried out by its task, alone: a group never has the last word on an error of the database.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import groupby, takewhile

import psycopg2.errors

from messaging import tracing
from messaging.delivery import Delivery
from messaging.errors import MessagingError, describe
from messaging.messages import Command
from messaging.postgres.inbox import Answer, CommandJob
from messaging.postgres.shared import SharedTransaction
from messaging.postgres.transaction import DATABASE_ERRORS
from messaging.project.runtime import Runtime
from messaging.telemetry.work import Work
from messaging.wire.validation import parse
from messaging.worker.answers import Answered, log_unexpected
from messaging.worker.received import Received
from reliable_celery.groups.member import Member

logger = logging.getLogger(__name__)

#: Seconds after which no further command of a group begins. Locks are held until the group's end, and a time
#: limit is meant for one command.
LONGEST_GROUP_S = 1.0


@dataclass(frozen=True)
class Candidate:
    """A command that may share a transaction."""

    job: CommandJob
    traceparent: str | None = None  # of the message that it came in
    around: Callable[[], AbstractContextManager[None]] = nullcontext  # entered while its handler runs


@dataclass(frozen=True)
class Done:
    """A command that was carried out, and how long that took."""

    command: Command
    answered: Answered
    seconds: float


class CommandGroup:
    """The commands of messages that arrived together."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self._done: dict[str, Done] = {}

    def take(self, work: Work) -> Answered | None:
        """Return the committed answer to a message, once; None if it has yet to be carried out."""
        done = self._done.pop(work.task_id, None)
        if done is None:
            return None
        work.was_done(done.command, done.seconds)
        return done.answered

    def prepare(self, members: Sequence[Member]) -> set[str]:
        """Carry out what can be carried out together; return the ids of the messages that have an answer."""
        self._done = carry_out_together(self.runtime, self._candidates(members))
        return set(self._done)

    def _candidates(self, members: Iterable[Member]) -> Iterator[Candidate]:
        """Yield first deliveries of valid commands; all others need more care."""
        for member in members:
            try:
                received = Received.of(member.task.name, member.context)
                job = received.job(parse(member.task.command, member.args, member.kwargs))
            except MessagingError:
                continue
            if received.is_fresh:
                yield Candidate(job, received.traceparent, member.current)


def carry_out_together(runtime: Runtime, candidates: Iterable[Candidate]) -> dict[str, Done]:
    """Carry out commands in as few transactions as possible; return what was committed, by message id.

    The others have to be carried out alone.
    """
    left = in_lock_order(_once_each(candidates))
    done: dict[str, Done] = {}
    until = time.monotonic() + LONGEST_GROUP_S
    while left and time.monotonic() < until:
        rest, some = _in_one_transaction(runtime, left, until)
        if len(rest) == len(left):
            break
        left, done = rest, done | some
    return done


def _once_each(candidates: Iterable[Candidate]) -> Iterator[Candidate]:
    """Leave out commands with the id or the key of another one."""
    names: set[str] = set()
    for one in candidates:
        if not names & {one.job.id, one.job.key}:
            names |= {one.job.id, one.job.key}
            yield one


def _in_one_transaction(
    runtime: Runtime, candidates: list[Candidate], until: float
) -> tuple[list[Candidate], dict[str, Done]]:
    """Carry out commands and commit them; return those that were not begun, all if nothing was committed."""
    transaction, done, begun = SharedTransaction(runtime.engine), dict[str, Done](), 0
    try:
        ordered = _read_ahead(runtime, candidates, transaction)
        for one in ordered:
            if begun and time.monotonic() > until:
                break
            began = time.perf_counter()
            try:
                answered = _carry_out(runtime, one, transaction)
            except psycopg2.errors.LockNotAvailable:
                if not begun:
                    raise
                break  # commit, so that nobody waits for our locks while we wait
            begun += 1
            if answered is not None:
                done[one.job.id] = Done(one.job.command, answered, time.perf_counter() - began)
        transaction.commit_all()
    except DATABASE_ERRORS as error:
        logger.info("A group of %d commands is run one by one: %s", len(candidates), describe(error))
        return candidates, {}
    finally:
        transaction.end()
    return ordered[begun:], done


def _read_ahead(
    runtime: Runtime, candidates: list[Candidate], transaction: SharedTransaction
) -> list[Candidate]:
    """Lock and read for many commands in one message; return all, those that it was done for first.

    Only for the first command of each aggregate: the next one depends on what it changes. Only for commands
    before any that does not say what it locks: that one may change the same.
    """
    read, first = runtime.project.read_ahead, dict[str, Candidate]()
    if read is None or len(candidates) < 2:  # alone it is no faster
        return candidates
    run = list(takewhile(lambda one: one.job.command.locks is not None, candidates))
    for one in run:
        first.setdefault(_key(one.job.command), one)
    firsts = list(first.values())
    places = transaction.read_ahead(read, [one.job.command for one in firsts])
    served = [firsts[place] for place in sorted(places)]
    ids = {one.job.id for one in served}
    return served + [one for one in candidates if one.job.id not in ids]


def _carry_out(runtime: Runtime, one: Candidate, transaction: SharedTransaction) -> Answered | None:
    """Run one command in its place of the transaction; None if its message was answered before."""
    uow, job = runtime.unit_of_work(one.job), one.job
    uow.transaction = transaction
    deliveries: list[Delivery] = []
    with one.around(), tracing.below(one.traceparent):
        try:
            result = runtime.project.bus.handle_command(job.command, deliveries, uow)
        except DATABASE_ERRORS:
            raise
        except Exception as error:  # noqa: BLE001  any error is the answer
            if not runtime.inbox.record_refusal(transaction, job, error):
                return None
            log_unexpected(runtime, job, error)
            return Answer(error=error), []
    return Answer(result), deliveries


def in_lock_order(candidates: Iterable[Candidate]) -> list[Candidate]:
    """Sort by aggregate, so that groups lock in the same order; one aggregate's commands keep theirs.

    A command that does not say what it locks stays where it is, and so does what is on either side of it.
    """
    ordered: list[Candidate] = []
    for says, run in groupby(candidates, key=lambda one: one.job.command.locks is not None):
        commands = list(run)
        ordered += sorted(commands, key=lambda one: _key(one.job.command)) if says else commands
    return ordered


def _key(command: Command) -> str:
    return str(getattr(command, command.locks or ""))
