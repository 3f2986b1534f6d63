"""One task per command: a synchronous dispatch on the bus; the result or the error goes to the sender."""

from __future__ import annotations

import json
import logging
import random
import time
from typing import Any

from celery import Celery, Task

from messaging.dead_letters import DeadLetter
from messaging.delivery import Delivery
from messaging.errors import InvalidMessage, MessagingError, Unavailable, WorkerCrashed
from messaging.messages import Command, to_dict
from messaging.postgres.inbox import Answer
from messaging.postgres.transaction import DATABASE_ERRORS, TRANSIENT_ERRORS
from messaging.postgres.unit_of_work import CommandJob
from messaging.runtime import Runtime
from messaging.validation import parse
from messaging.worker.sender import after_commit

logger = logging.getLogger(__name__)

#: The longest wait before the second try at a transient database error; it doubles with each try.
FIRST_PAUSE_S = 0.05


def add_command_tasks(app: Celery, runtime: Runtime) -> None:
    """Register a task for every command of the project."""
    for kind in runtime.project.bus.commands:
        _add_command_task(app, runtime, kind)


def _add_command_task(app: Celery, runtime: Runtime, kind: type[Command]) -> None:
    # typing=False: arguments are checked by `parse`, whose errors name the field and the rule.
    # throws: an error is an answer, and the bus has logged it; Celery need not add a traceback.
    @app.task(
        bind=True,
        shared=False,  # another project's app in this process must not get our task
        name=runtime.project.command_task(kind),
        typing=False,
        throws=(MessagingError, *runtime.project.refusals),
        __doc__=kind.__doc__,
    )
    def command_task(task: Task, *args: Any, **kwargs: Any) -> Any:
        request = task.request
        command = parse(kind, args, kwargs)
        job = CommandJob(checked_id(request.id), command, request.root_id or request.id)
        if (request.delivery_info or {}).get("redelivered"):
            answer = begin_again(runtime, job, runtime.project.command_task(kind), delivery_queue(task))
            if answer is not None:
                return answer.result
        result, deliveries = execute(runtime, job)
        after_commit(app, runtime, deliveries)
        return result


def execute(runtime: Runtime, job: CommandJob) -> tuple[Any, list[Delivery]]:
    """Handle the command in one transaction; return its result, and the deliveries to send now.

    Transient database errors are tried again, each time from a clean start.
    """
    attempts = runtime.settings.command_attempts
    for attempt in range(1, attempts + 1):
        uow = runtime.unit_of_work(job)
        try:
            [result] = runtime.project.bus.handle(job.command, uow)
        except TRANSIENT_ERRORS as error:
            answer = _first_answer(runtime, job)
            if answer is not None:
                return answer.result, []
            if attempt == attempts:
                raise Unavailable(_unavailable(error)) from None
            time.sleep(random.uniform(0, FIRST_PAUSE_S * 2**attempt))  # noqa: S311  # jitter, not a secret
        except Exception:
            # A second delivery may be refused where the first was carried out: the first answer stands.
            answer = _first_answer(runtime, job)
            if answer is not None:
                return answer.result, []
            raise
        else:
            return result, uow.deliveries
    raise AssertionError("unreachable")


def _first_answer(runtime: Runtime, job: CommandJob) -> Answer | None:
    try:
        return runtime.inbox.answer(job.id, job.command)
    except DATABASE_ERRORS:
        return None


def begin_again(runtime: Runtime, job: CommandJob, task: str, queue: str | None) -> Answer | None:
    """Answer a redelivered command from the inbox, or count it; one that keeps killing workers is parked.

    Raises:
        WorkerCrashed: it is parked as a dead letter.
    """
    answer = _first_answer(runtime, job)
    if answer is not None:
        return answer
    try:
        crashes = runtime.inbox.count_crash(job.id)
    except DATABASE_ERRORS:
        return None
    if crashes > runtime.settings.max_crashes:
        error = WorkerCrashed(f"Parked: {crashes - 1} workers died while they handled this command")
        runtime.dead_letters.add(_parked(task, queue, job, error))
        raise error
    return None


def delivery_queue(task: Task) -> str | None:
    """Return the queue from which a running task's message came."""
    queue: str | None = (task.request.delivery_info or {}).get("routing_key")
    return queue


def _parked(task: str, queue: str | None, job: CommandJob, error: WorkerCrashed) -> DeadLetter:
    embed = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
    headers = {"lang": "py", "task": task, "id": job.id, "root_id": job.correlation_id}
    return DeadLetter(
        reason="killed its worker",
        task=task,
        task_id=job.id,
        queue=queue,
        content_type="application/json",
        content_encoding="utf-8",
        headers=headers,
        properties={},
        body=json.dumps([[], to_dict(job.command), embed]).encode(),
        error=str(error),
    )


def checked_id(task_id: object) -> str:
    if not isinstance(task_id, str) or not 1 <= len(task_id) <= 255 or not task_id.isprintable():
        raise InvalidMessage("id", "must be a text of 1 to 255 printable characters")
    return task_id


def _unavailable(error: BaseException) -> str:
    """Name a database error without its text, which may hold addresses and user names."""
    origin = getattr(error, "orig", None) or error
    code = getattr(origin, "pgcode", None)
    problem = f"{type(origin).__name__} {code}" if code else type(origin).__name__
    return f"The database did not take the command ({problem}); send it again with the same id"
