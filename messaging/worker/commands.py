"""One task per command: it runs on the bus, and the result or the error goes to the sender.

Every answer is committed before it is sent: a result together with the command's changes, an error as its own
row. So a copy of the message gets the same answer, whichever worker runs it. (docs/adr/006)
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from itertools import count
from typing import Any

from celery import Task
from kombu.serialization import dumps

from messaging.dead_letters import PARKED, DeadLetter
from messaging.delivery import Delivery, new_id
from messaging.errors import Expired, Unavailable, WorkerCrashed
from messaging.messages import IDEMPOTENCY_KEY, Command, to_dict
from messaging.postgres.inbox import Answer, CommandJob
from messaging.postgres.transaction import DATABASE_ERRORS, TRANSIENT_ERRORS, WAITED_TOO_LONG
from messaging.project.runtime import Runtime
from messaging.wire.validation import parse
from messaging.worker.answers import Answered, log_unexpected
from messaging.worker.command_group import CommandGroup
from messaging.worker.dispatcher import Dispatcher
from messaging.worker.received import Received
from messaging.worker.request import CommandTask

logger = logging.getLogger(__name__)

#: The longest wait before the second attempt after a transient database error; it doubles with each attempt.
FIRST_PAUSE_S = 0.05


def add_command_tasks(dispatcher: Dispatcher) -> None:
    """Register a task for every command of the project."""
    group = CommandGroup(dispatcher.runtime, dispatcher.watch)
    for name, kind in dispatcher.project.command_tasks.items():
        _add_command_task(dispatcher, group, name, kind)


def _add_command_task(dispatcher: Dispatcher, group: CommandGroup, name: str, kind: type[Command]) -> None:
    # typing=False: `parse` checks the arguments; its errors name the field and the rule.
    # throws: errors are answers, and unexpected ones are logged here; Celery must not log them again.
    @dispatcher.app.task(
        bind=True,
        shared=False,  # another project's app in this process must not get our task
        base=CommandTask,
        name=name,
        typing=False,
        throws=(Exception,),
        command=kind,
        together=group,
        __doc__=kind.__doc__,
    )
    def command_task(task: Task, /, *args: Any, **kwargs: Any) -> Any:
        message = Received.of(task.name, task.request)
        work, answered = group.take(message.task_id) or (message.work(), None)
        with dispatcher.watch.over(work):
            if answered is None:
                read = work.reading(lambda: parse(kind, args, kwargs))
                answered = handle(dispatcher.runtime, message, read)
            work.answer, deliveries = answered
        dispatcher.after_commit(deliveries)
        return work.answer.given()


def handle(runtime: Runtime, received: Received, read: Callable[[], Command]) -> Answered:
    """Carry out a command, or return its earlier answer; `read` builds it from the message."""
    job = received.job(Command())
    patience = Patience(runtime.settings.command_attempts, runtime.settings.task_time_limit_s)
    try:
        job = received.job(read())
        if received.redelivered:
            earlier = _begin_again(runtime, received, job)
            if earlier is not None:
                return earlier, []
        if not received.expired:
            return _execute(runtime, job, patience)
        error: Exception = Expired("The message expired before a worker started it; nothing was changed")
    except Exception as raised:  # noqa: BLE001  any error is the answer
        error = raised
    return _refuse(runtime, job, error, patience), []


class Patience:
    """Limits the attempts at a command, so that its sender gets an answer before the task's time limit.

    A server that does not answer costs seconds per attempt, and pauses double.
    """

    def __init__(self, attempts: int, time_limit_s: float) -> None:
        self.attempts = attempts
        self._until = time.monotonic() + time_limit_s / 3

    def allows(self, attempt: int, problem: Exception) -> bool:
        """Return whether to try again after this attempt, after a pause."""
        left_s = self._until - time.monotonic()
        # Lock timeouts are short enough for all attempts together.
        if attempt >= self.attempts or (left_s <= 0 and not isinstance(problem, WAITED_TOO_LONG)):
            return False
        pause_s = random.uniform(0, FIRST_PAUSE_S * 2 ** min(attempt, 30))  # noqa: S311  # jitter, not a secret
        time.sleep(max(0, min(pause_s, left_s)))
        return True


def _execute(runtime: Runtime, job: CommandJob, patience: Patience) -> Answered:
    """Handle the command in one transaction; retry it from the start after transient database errors."""
    for attempt in count(1):
        deliveries: list[Delivery] = []
        try:
            result = runtime.project.bus.handle_command(job.command, deliveries, runtime.unit_of_work(job))
        except TRANSIENT_ERRORS as error:
            problem = error
        else:
            return Answer(result), deliveries
        earlier = _earlier_answer(runtime, job)
        if earlier is not None:
            return earlier, []
        if not patience.allows(attempt, problem):
            break
    raise Unavailable(
        f"The database could not run the command ({_code(problem)}) and nothing was changed;"
        f" send it again with the idempotency key {job.key!r}"
    )


def _earlier_answer(runtime: Runtime, job: CommandJob) -> Answer | None:
    try:
        return runtime.inbox.answer(job)
    except DATABASE_ERRORS:
        return None


def _refuse(runtime: Runtime, job: CommandJob, error: Exception, patience: Patience) -> Answer:
    """Store an error as the answer, unless the message or its key already has one."""
    refusal = _without_database_text(error)
    answer = _recorded(runtime, job, refusal, patience)
    if answer.error is refusal:
        log_unexpected(runtime, job, error)
    return answer


def _recorded(runtime: Runtime, job: CommandJob, refusal: Exception, patience: Patience) -> Answer:
    """Store a refusal before it is sent, so that no copy of the message carries out the command later."""
    for attempt in count(1):
        try:
            return runtime.inbox.refuse(job, refusal)
        except DATABASE_ERRORS as error:
            problem = error
        if isinstance(problem, WAITED_TOO_LONG) or not patience.allows(attempt, problem):
            break
    return Answer(
        error=Unavailable(
            f"The database did not answer ({_code(problem)}), so it is not known whether the command was"
            f" carried out; send it again with the idempotency key {job.key!r}"
        ),
        recorded=False,
    )


def _begin_again(runtime: Runtime, received: Received, job: CommandJob) -> Answer | None:
    """Find the answer to a redelivered command, or count it; park it if it keeps killing workers.

    Raises:
        WorkerCrashed: it is parked as a dead letter.
    """
    earlier = _earlier_answer(runtime, job)
    if earlier is not None:
        return earlier
    try:
        crashes = runtime.inbox.count_crash(job.id)
    except DATABASE_ERRORS:
        return None
    if crashes > runtime.settings.max_crashes:
        error = WorkerCrashed(f"Parked: {crashes - 1} workers died while they handled this command")
        runtime.dead_letters.add(_parked(received, job, error))
        raise error
    return None


def _parked(received: Received, job: CommandJob, error: WorkerCrashed) -> DeadLetter:
    embed = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
    # Its replay signs it, where only signed messages are accepted.
    content_type, encoding, body = dumps([[], to_dict(job.command), embed], "json")
    # This message has its final answer; a replay is a new message, which still takes effect once.
    headers = {"lang": "py", "task": received.task, "id": new_id(), "root_id": job.correlation_id}
    return DeadLetter(
        reason=PARKED,
        task=received.task,
        task_id=job.id,
        queue=received.queue,
        content_type=content_type,
        content_encoding=encoding,
        headers=headers | {IDEMPOTENCY_KEY: job.key},
        properties={},
        body=body.encode(),
        error=str(error),
    )


def _without_database_text(error: Exception) -> Exception:
    """Return an error that is safe to send: a database error's text may hold addresses, names and values."""
    if not isinstance(error, DATABASE_ERRORS):
        return error
    return Unavailable(f"The database rejected the command ({_code(error)}) and nothing was changed")


def _code(error: BaseException) -> str:
    """Return a database error's code or class, without its text."""
    origin = getattr(error, "orig", None) or error
    code = getattr(origin, "pgcode", None)
    return f"{type(origin).__name__} {code}" if code else type(origin).__name__
