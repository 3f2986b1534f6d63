"""Commands that arrived together share a transaction, each behind a savepoint (docs/adr/012).

Their answers are kept until their tasks ask for them, which happens at once. A command without an answer here
is carried out by its task, alone: a group never has the last word on an error of the database.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import psycopg2.errors

from messaging import tracing
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
LONGEST_GROUP_S = 0.25


@dataclass(frozen=True)
class Candidate:
    """A command of a group, and the message that it came in."""

    member: Member
    job: CommandJob
    traceparent: str | None


@dataclass(frozen=True)
class Done:
    """A command that was carried out, and how long that took."""

    command: Command
    answered: Answered
    seconds: float


class CommandGroup:
    """Carries out commands that arrived together in as few transactions as possible."""

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
        self._done.clear()
        candidates = in_lock_order(self._candidates(members))
        until = time.monotonic() + LONGEST_GROUP_S
        while candidates and time.monotonic() < until:
            done = self._in_one_transaction(candidates, until)
            if not done:
                break
            candidates = candidates[done:]
        return set(self._done)

    def _candidates(self, members: Iterable[Member]) -> Iterator[Candidate]:
        """Yield first deliveries of valid commands, one per id and key; all others need more care."""
        names: set[str] = set()
        for member in members:
            try:
                received = Received.of(member.task.name, member.context)
                job = received.job(parse(member.task.command, member.args, member.kwargs))
            except MessagingError:
                continue
            if not received.redelivered and not received.expired and not names & {job.id, job.key}:
                names |= {job.id, job.key}
                yield Candidate(member, job, received.traceparent)

    def _in_one_transaction(self, candidates: Sequence[Candidate], until: float) -> int:
        """Carry out commands and commit them; return how many, 0 if nothing was committed."""
        transaction, carried_out, done = SharedTransaction(self.runtime.engine), dict[str, Done](), 0
        try:
            for one in candidates:
                if done and time.monotonic() > until:
                    break
                began = time.perf_counter()
                try:
                    answered = self._carry_out(one, transaction)
                except psycopg2.errors.LockNotAvailable:
                    if not done:
                        raise
                    break  # commit, so that nobody waits for our locks while we wait
                done += 1
                if answered is not None:
                    seconds = time.perf_counter() - began
                    carried_out[one.job.id] = Done(one.job.command, answered, seconds)
            transaction.commit_all()
        except DATABASE_ERRORS as error:
            logger.info("A group of %d commands is run one by one: %s", len(candidates), describe(error))
            return 0
        finally:
            transaction.end()
        self._done |= carried_out
        return done

    def _carry_out(self, one: Candidate, transaction: SharedTransaction) -> Answered | None:
        """Run one command in its place of the transaction; None if its message was answered before."""
        uow, job = self.runtime.unit_of_work(one.job), one.job
        uow.transaction = transaction
        deliveries: list[Any] = []
        with one.member.current(), tracing.below(one.traceparent):
            try:
                result = self.runtime.project.bus.handle_command(job.command, deliveries, uow)
            except DATABASE_ERRORS:
                raise
            except Exception as error:  # noqa: BLE001  any error is the answer
                if not self.runtime.inbox.record_refusal(transaction, job, error):
                    return None
                log_unexpected(self.runtime, job, error)
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
