"""Commands that arrived together share a transaction (docs/adr/012).

Their answers are kept until their tasks ask for them, which happens at once. A command without an answer here
is carried out by its task, alone: a group never has the last word on an error of the database.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace

from messaging.delivery import Delivery
from messaging.errors import MessagingError
from messaging.messages import Command
from messaging.postgres.inbox import Answer, CommandJob
from messaging.postgres.shared import SharedTransaction
from messaging.postgres.transaction import DATABASE_ERRORS
from messaging.project.runtime import Runtime
from messaging.telemetry.work import Watch, Work
from messaging.wire.validation import parse
from messaging.worker.answers import Answered, log_unexpected
from messaging.worker.received import Received
from messaging.worker.sharing import Done, handle_together
from reliable_celery.groups.member import Member


@dataclass(frozen=True)
class CommandUnit:
    """A command that may share a transaction."""

    runtime: Runtime
    job: CommandJob
    work: Work  # what is to be noted about it
    watch: Watch
    around: Callable[[], AbstractContextManager[None]] = nullcontext  # entered while its handler runs

    @property
    def id(self) -> str:
        """Return the id of the message."""
        return self.job.id

    @property
    def message(self) -> Command:
        """Return the command."""
        return self.job.command

    def run(self, transaction: SharedTransaction) -> Answered | None:
        """Carry out the command; None if its message was answered before."""
        runtime, job, deliveries = self.runtime, self.job, list[Delivery]()
        uow = runtime.unit_of_work(replace(job, shares=transaction))
        with self.around(), self.watch.ahead(self.work):
            try:
                result = runtime.project.bus.handle_command(job.command, deliveries, uow)
            except DATABASE_ERRORS:
                raise
            except Exception as error:  # noqa: BLE001  any error is the answer
                transaction.close()  # still open where its own `__enter__` failed
                if not runtime.inbox.record_refusal(transaction, job, error):
                    return None
                log_unexpected(runtime, job, error)
                return Answer(error=error), []
        return Answer(result), deliveries


class CommandGroup:
    """The commands of messages that arrived together."""

    def __init__(self, runtime: Runtime, watch: Watch) -> None:
        self.runtime, self.watch = runtime, watch
        self._done: dict[str, tuple[CommandUnit, Done[Answered]]] = {}

    def take(self, task_id: str) -> tuple[Work, Answered] | None:
        """Return the committed answer to a message, once; None if it has yet to be carried out."""
        if task_id not in self._done:
            return None
        unit, done = self._done.pop(task_id)
        unit.work.was_done(done.seconds, unit.message)
        return unit.work, done.outcome

    def prepare(self, members: Sequence[Member]) -> set[str]:
        """Carry out what can be carried out together; return the ids of the messages that have an answer."""
        units = once_each(self._units(members))
        if not units:
            return set()
        with self.watch.together([unit.work for unit in units]):
            done = handle_together(self.runtime, units)
        self._done = {unit.id: (unit, done[unit.id]) for unit in units if unit.id in done}
        return set(self._done)

    def _units(self, members: Iterable[Member]) -> Iterator[CommandUnit]:
        """Yield first deliveries of valid commands; all others need more care."""
        for member in members:
            try:
                received = Received.of(member.task.name, member.context)
                job = received.job(parse(member.task.command, member.args, member.kwargs))
            except MessagingError:
                continue
            if received.is_fresh:
                yield CommandUnit(self.runtime, job, received.work(), self.watch, member.current)


def once_each(units: Iterable[CommandUnit]) -> list[CommandUnit]:
    """Leave out commands with the id or the key of another one."""
    names: set[str] = set()
    kept = []
    for unit in units:
        if not names & {unit.job.id, unit.job.key}:
            names |= {unit.job.id, unit.job.key}
            kept.append(unit)
    return kept
