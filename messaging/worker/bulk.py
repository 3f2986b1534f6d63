"""Many commands in one message: each has its own transaction, key and answer, all share one round trip.

The task `<project>.many` takes a list of `[task name, fields]` or `[task name, fields, idempotency key]`. A
key that is not given is `<key or id of the message>.<position from 0>`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from celery import Task

from messaging.delivery import Delivery
from messaging.errors import InvalidMessage, UnknownMessage
from messaging.messages import Command
from messaging.postgres.transaction import DATABASE_ERRORS
from messaging.runtime import Runtime
from messaging.validation import from_dict
from messaging.worker.commands import Answered, handle, logger
from messaging.worker.dispatcher import Dispatcher
from messaging.worker.received import Received
from messaging.worker.request import CommandTask

Outcome = dict[str, Any]  # {"id", "result"} or {"id", "error": {"type", "message"}}; the id is the key


def add_bulk_task(dispatcher: Dispatcher) -> None:
    """Register the task `<project>.many`."""
    runtime = dispatcher.runtime

    @dispatcher.app.task(
        bind=True,
        shared=False,  # another project's app in this process must not get our task
        base=CommandTask,
        name=f"{runtime.project.name}.many",
        typing=False,
        throws=(Exception,),
        __doc__=__doc__,
    )
    def bulk_task(task: Task, *args: Any, **kwargs: Any) -> list[Outcome]:
        """Handle a list of commands, each in a transaction of its own."""
        message = Received.of(task.name, task.request)
        outcomes, deliveries = handle_many(runtime, message, _commands(runtime, args, kwargs))
        # Once for all: should this worker die before, the relay sends them.
        dispatcher.after_commit(deliveries)
        return outcomes


def handle_many(
    runtime: Runtime, message: Received, commands: Sequence[Any]
) -> tuple[list[Outcome], list[Delivery]]:
    """Handle one command after the other; return what each came to, in their order."""
    outcomes: list[Outcome] = []
    deliveries: list[Delivery] = []
    for position, item in enumerate(commands):
        try:
            name, fields, key = _taken_apart(item)
            one = message.one_of_many(position, name, key)
        except InvalidMessage as error:
            outcomes.append(_outcome(f"{message.key or message.task_id}.{position}", error=error))
            continue
        answer, raised = _handle_one(runtime, one, fields)
        outcomes.append(_outcome(one.key or one.task_id, answer.result, answer.error))
        deliveries += raised
    return outcomes, deliveries


def _handle_one(runtime: Runtime, one: Received, fields: Mapping[str, Any]) -> Answered:
    try:
        return handle(runtime, one, lambda: from_dict(_kind(runtime, one.task), fields))
    finally:
        if one.redelivered:
            _survived(runtime, one)


def _survived(runtime: Runtime, one: Received) -> None:
    """Take the count of crashes back: this command was not what killed the message's worker."""
    try:
        runtime.inbox.forget_crashes(one.task_id)
    except DATABASE_ERRORS:
        logger.warning("Could not forget the crashes of %s", one.task_id)


def _outcome(key: str, result: Any = None, error: Exception | None = None) -> Outcome:
    if error is None:
        return {"id": key, "result": result}
    return {"id": key, "error": {"type": type(error).__name__, "message": str(error)}}


def _commands(runtime: Runtime, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Sequence[Any]:
    given = [*args, *kwargs.values()]
    if len(given) != 1 or not isinstance(given[0], list) or kwargs.keys() - {"commands"}:
        raise InvalidMessage("commands", "must be one list, and the only argument")
    limit = runtime.settings.bulk_max
    if len(given[0]) > limit:
        raise InvalidMessage("commands", f"must be at most {limit} in one message")
    return given[0]


def _taken_apart(item: object) -> tuple[str, Mapping[str, Any], str | None]:
    match item:
        case [str(name), dict(fields)]:
            return name, fields, None
        case [str(name), dict(fields), str(key)]:
            return name, fields, key
    raise InvalidMessage("command", "must be [task name, fields] or [task name, fields, id]")


def _kind(runtime: Runtime, name: str) -> type[Command]:
    kind = runtime.project.command_tasks.get(name)
    if kind is None:
        raise UnknownMessage(f"No command is called {name[:255]!r}")
    return kind
