"""Many commands in one message: each has its own transaction, id, result and error, all share one round trip.

The task `<project>.many` takes a list of `[task name, fields]` or `[task name, fields, id]`. An id that is
not given is `<id of the message>.<position from 0>`, so that a message sent again is answered from the inbox.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from celery import Celery, Task

from messaging.delivery import Delivery
from messaging.errors import InvalidMessage, MessagingError, UnknownMessage
from messaging.messages import Command
from messaging.postgres.transaction import DATABASE_ERRORS
from messaging.postgres.unit_of_work import CommandJob
from messaging.runtime import Runtime
from messaging.validation import from_dict
from messaging.worker.commands import begin_again, checked_id, delivery_queue, execute
from messaging.worker.sender import after_commit

logger = logging.getLogger(__name__)

Outcome = dict[str, Any]  # {"id", "result"} or {"id", "error": {"type", "message"}}


@dataclass(frozen=True)
class Bulk:
    """One message: whether it came before, where from, and what began it."""

    task_id: str
    correlation_id: str
    redelivered: bool
    queue: str | None


def add_bulk_task(app: Celery, runtime: Runtime) -> None:
    """Register the task `<project>.many`."""

    @app.task(
        bind=True,
        shared=False,  # another project's app in this process must not get our task
        name=f"{runtime.project.name}.many",
        typing=False,
        throws=(MessagingError,),
        __doc__=__doc__,
    )
    def bulk_task(task: Task, *args: Any, **kwargs: Any) -> list[Outcome]:
        """Handle a list of commands, each in a transaction of its own."""
        request = task.request
        bulk = Bulk(
            checked_id(request.id),
            request.root_id or request.id,
            bool((request.delivery_info or {}).get("redelivered")),
            delivery_queue(task),
        )
        return handle_many(app, runtime, bulk, _commands(runtime, args, kwargs))


def handle_many(app: Celery, runtime: Runtime, bulk: Bulk, commands: Sequence[Any]) -> list[Outcome]:
    """Handle one command after the other; return what each came to, in their order."""
    outcomes: list[Outcome] = []
    deliveries: list[Delivery] = []
    for position, item in enumerate(commands):
        item_id = f"{bulk.task_id}.{position}"
        try:
            name, fields, item_id = _taken_apart(item, item_id)
            result, raised = _handle_one(runtime, bulk, name, fields, item_id)
        except Exception as error:  # noqa: BLE001  it is this command's answer
            _log_unexpected(runtime, error)
            outcomes.append({"id": item_id, "error": {"type": type(error).__name__, "message": str(error)}})
        else:
            outcomes.append({"id": item_id, "result": result})
            deliveries += raised
    # Once for all: should this worker die before, the relay sends them.
    after_commit(app, runtime, deliveries)
    return outcomes


def _handle_one(
    runtime: Runtime, bulk: Bulk, name: str, fields: Mapping[str, Any], item_id: str
) -> tuple[Any, list[Delivery]]:
    job = CommandJob(checked_id(item_id), from_dict(_kind(runtime, name), fields), bulk.correlation_id)
    if not bulk.redelivered:
        return execute(runtime, job)
    answer = begin_again(runtime, job, name, bulk.queue)
    if answer is not None:
        return answer.result, []
    try:
        return execute(runtime, job)
    finally:
        _survived(runtime, job)


def _survived(runtime: Runtime, job: CommandJob) -> None:
    """Take the count of crashes back: this command was not what killed the message's worker."""
    try:
        runtime.inbox.forget_crashes(job.id)
    except DATABASE_ERRORS:
        logger.warning("Could not forget the crashes of %s", job.id)


def _commands(runtime: Runtime, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Sequence[Any]:
    given = [*args, *kwargs.values()]
    if len(given) != 1 or not isinstance(given[0], list) or kwargs.keys() - {"commands"}:
        raise InvalidMessage("commands", "must be one list, and the only argument")
    limit = runtime.settings.bulk_max
    if len(given[0]) > limit:
        raise InvalidMessage("commands", f"must be at most {limit} in one message")
    return given[0]


def _taken_apart(item: object, default_id: str) -> tuple[str, Mapping[str, Any], str]:
    match item:
        case [str(name), dict(fields)]:
            return name, fields, default_id
        case [str(name), dict(fields), str(item_id)]:
            return name, fields, item_id
    raise InvalidMessage("command", "must be [task name, fields] or [task name, fields, id]")


def _kind(runtime: Runtime, name: str) -> type[Command]:
    project = runtime.project
    for kind in project.bus.commands:
        if project.command_task(kind) == name:
            return kind
    raise UnknownMessage(f"No command is called {name[:255]!r}")


def _log_unexpected(runtime: Runtime, error: Exception) -> None:
    """Log the traceback of an accident; a refusal is an answer, and the bus has logged it."""
    if not isinstance(error, (MessagingError, *runtime.project.refusals)):
        logger.error("A command among many failed", exc_info=error)
