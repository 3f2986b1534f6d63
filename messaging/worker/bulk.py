"""Many commands in one message: each has its own key and answer; all share one round trip.

Each also has its own transaction, unless `group_max` lets so many share one, in which each is undone alone.

The task `<project>.many` takes a list of `[task name, fields]` or `[task name, fields, idempotency key]`. The
default key is `<key or id of the message>.<position from 0>`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from celery import Task

from messaging.delivery import Delivery
from messaging.errors import InvalidMessage, MessagingError, UnknownMessage
from messaging.messages import Command
from messaging.postgres.inbox import MAX_STORED_TEXT, Answer, CommandJob
from messaging.postgres.transaction import DATABASE_ERRORS
from messaging.project.runtime import Runtime
from messaging.telemetry.work import NOBODY, Kind, Watch, Work
from messaging.texts import class_name, cut, text_of
from messaging.wire.validation import from_dict
from messaging.worker.answers import Answered
from messaging.worker.command_group import CommandUnit, once_each
from messaging.worker.commands import handle, logger
from messaging.worker.dispatcher import Dispatcher
from messaging.worker.received import Received
from messaging.worker.request import CommandRequest, CommandTask
from messaging.worker.sharing import Done, handle_together

#: {"id", "result"} or {"id", "error": {"type", "message"}}; the id is the key. An error that the inbox could
#: not keep has `"recorded": false` beside it.
Outcome = dict[str, Any]

#: Finds nothing: a key has printable characters only.
NO_KEY = "\n"


@dataclass(frozen=True)
class Item:
    """One command of the list."""

    received: Received
    read: Callable[[], Command]

    @property
    def job(self) -> CommandJob:
        """Return the command's job, even if the command is unreadable."""
        return self.received.readable_job(self.read)

    @property
    def work(self) -> Work:
        """Return what is to be noted about its handling."""
        return replace(self.received.work(), in_batch=True)

    @property
    def key(self) -> str:
        """Return the key that identifies its outcome."""
        return self.received.key or self.received.task_id


class BulkRequest(CommandRequest):
    """A message whose commands are answered, and so revoked, one by one."""

    def answer_revoked(self, error: Exception) -> Answer:
        """Store the revocation as the answer to each command that has none."""
        runtime, message = self.task.app.runtime, Received.of(self.name, self._context)
        commands = _commands(self.args, self.kwargs)
        if len(commands) > runtime.settings.bulk_max:
            refusal: Answer = runtime.inbox.refuse(message.job_of_all(), error)
            return refusal
        items = _items(runtime, message, commands)
        answers = runtime.inbox.refuse_all([item.job for item in items if isinstance(item, Item)], error)
        if all(answer.error is error for answer in answers.values()):
            return Answer(error=error)
        return Answer(
            [
                _outcome(item.key, answers[item.received.task_id]) if isinstance(item, Item) else item
                for item in items
            ]
        )


class BulkTask(CommandTask):
    """The base of `<project>.many`."""

    abstract = True
    Request: Any = f"{__name__}:{BulkRequest.__name__}"


def add_bulk_task(dispatcher: Dispatcher) -> None:
    """Register the task `<project>.many`."""
    runtime = dispatcher.runtime

    @dispatcher.app.task(
        bind=True,
        shared=False,  # another project's app in this process must not get our task
        base=BulkTask,
        name=f"{runtime.project.name}.many",
        typing=False,
        throws=(Exception,),
        __doc__=__doc__,
    )
    def bulk_task(task: Task, /, *args: Any, **kwargs: Any) -> list[Outcome]:
        """Handle a list of commands."""
        message = Received.of(task.name, task.request)
        commands = _commands(args, kwargs)
        with dispatcher.watch.over(replace(message.work(), kind=Kind.BATCH, count=len(commands))):
            outcomes, deliveries = handle_many(runtime, message, commands, dispatcher.watch)
        # Sent together at the end: if this worker dies before, the relay sends them.
        dispatcher.after_commit(deliveries)
        return outcomes


def handle_many(
    runtime: Runtime, message: Received, commands: Sequence[Any], watch: Watch = NOBODY
) -> tuple[list[Outcome], list[Delivery]]:
    """Handle one command after the other; return their outcomes in order.

    Raises:
        InvalidMessage: the list is too long. One that was begun under another limit is continued.
    """
    outcomes: list[Outcome] = []
    deliveries: list[Delivery] = []
    items = _items(runtime, message, commands)
    answers = _earlier_answers(runtime, message, items) if message.redelivered else {}
    whole = answers.pop(message.task_id, Answer())
    if whole.error is not None or (not answers and len(commands) > runtime.settings.bulk_max):
        _refuse_whole(runtime, message).given()
        raise InvalidMessage("id", "was used before, for another command")
    for chunk in _chunks(items, runtime.settings.group_max):
        together = _together(runtime, chunk, watch)
        for item in chunk:
            if not isinstance(item, Item):
                outcomes.append(item)
                continue
            answer = answers.get(item.received.task_id)
            if answer is None:
                answer, raised = _handle_one(runtime, item, watch, *together.get(item.received.task_id, ()))
                deliveries += raised
            outcomes.append(_outcome(item.key, answer))
    return outcomes, deliveries


def _chunks(items: list[Item | Outcome], size: int) -> Iterator[list[Item | Outcome]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _together(
    runtime: Runtime, chunk: Sequence[Item | Outcome], watch: Watch
) -> dict[str, tuple[Work, Done[Answered]]]:
    """Carry out commands in one transaction; return what was done, by id. Those of a redelivery run alone."""
    items = [item for item in chunk if isinstance(item, Item) and item.received.is_fresh]
    if len(items) < 2:  # one is no group
        return {}
    units = []
    for item in items:
        with suppress(MessagingError):
            units.append(CommandUnit(runtime, item.received.job(item.read()), item.work, watch))
    units = once_each(units)
    done = handle_together(runtime, units)
    return {unit.id: (unit.work, done[unit.id]) for unit in units if unit.id in done}


def _items(runtime: Runtime, message: Received, commands: Sequence[Any]) -> list[Item | Outcome]:
    """Split a list into commands; an invalid one gets an error at once."""
    items: list[Item | Outcome] = []
    for position, item in enumerate(commands):
        try:
            name, fields, key = _taken_apart(item)
            received = message.one_of_many(position, name, key)
        except InvalidMessage as error:
            items.append(_outcome(f"{message.key or message.task_id}.{position}", Answer(error=error)))
        else:
            items.append(Item(received, partial(_read, runtime, name, fields)))
    return items


def _earlier_answers(
    runtime: Runtime, message: Received, items: Iterable[Item | Outcome]
) -> dict[str, Answer]:
    """Return earlier answers by task id, in one query: one by one could take the whole time limit."""
    jobs = [item.job for item in items if isinstance(item, Item)]
    # A command of the list may have the message's id as its key; its answer is not that of the whole list.
    of_all = replace(message.job_of_all(), idempotency_key=NO_KEY)
    try:
        return runtime.inbox.answers([of_all, *jobs])
    except DATABASE_ERRORS:
        return {}


def _refuse_whole(runtime: Runtime, message: Received) -> Answer:
    """Make the refusal of a list that is too long the answer to its message; return the one that stands."""
    limit = runtime.settings.bulk_max

    def read() -> Command:
        raise InvalidMessage("commands", f"must be at most {limit} in one message")

    answer, _ = handle(runtime, replace(message, key=None), read)
    return answer


def _handle_one(
    runtime: Runtime, item: Item, watch: Watch, work: Work | None = None, done: Done[Answered] | None = None
) -> Answered:
    try:
        with watch.over(work or item.work) as work:
            if done is None:
                answered = handle(runtime, item.received, work.reading(item.read))
            else:
                work.was_done(done.seconds, item.read())
                answered = done.outcome
            work.answer, deliveries = answered
        return work.answer, deliveries
    finally:
        if item.received.redelivered:
            _survived(runtime, item.received)


def _survived(runtime: Runtime, one: Received) -> None:
    """Reset the count of crashes: it was not this command that killed the message's worker."""
    try:
        runtime.inbox.forget_crashes(one.task_id)
    except DATABASE_ERRORS:
        logger.warning("Could not forget the crashes of %s", one.task_id)


def _outcome(key: str, answer: Answer) -> Outcome:
    if answer.error is None:
        return {"id": key, "result": answer.result}
    message = cut(text_of(answer.error), MAX_STORED_TEXT)  # as a copy is told it
    error = {"type": class_name(answer.error), "message": message}
    return {"id": key, "error": error} | ({} if answer.recorded else {"recorded": False})


def _commands(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Sequence[Any]:
    given = [*args, *kwargs.values()]
    if len(given) != 1 or not isinstance(given[0], list) or kwargs.keys() - {"commands"}:
        raise InvalidMessage("commands", "must be one list, and the only argument")
    return given[0]


def _taken_apart(item: object) -> tuple[str, Mapping[str, Any], str | None]:
    match item:
        case [str(name), dict(fields)]:
            return name, fields, None
        case [str(name), dict(fields), str(key)]:
            return name, fields, key
    raise InvalidMessage("command", "must be [task name, fields] or [task name, fields, id]")


def _read(runtime: Runtime, name: str, fields: Mapping[str, Any]) -> Command:
    kind = runtime.project.command_tasks.get(name)
    if kind is None:
        raise UnknownMessage(f"No command is called {name[:255]!r}")
    return from_dict(kind, fields)
