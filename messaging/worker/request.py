"""A command's message in a worker's main process: how it expires and is revoked."""

from __future__ import annotations

from functools import partial
from typing import Any

from celery import Task
from celery.exceptions import TaskRevokedError
from celery.worker.state import task_ready

from messaging.errors import InvalidMessage
from messaging.postgres.inbox import Answer
from messaging.wire.validation import parse
from messaging.worker.received import Received
from reliable_celery.requests import RESULTS_ARE_AWAY, Request


class OwnTimeLimits(Request):
    """Uses the task's time limits, whatever the message asks for.

    A sender's hard limit could kill each run before the crash is counted; a soft one raises at any moment,
    even after the commit, and would be sent as the outcome.
    """

    @property
    def time_limits(self) -> tuple[None, None]:
        """Return no limits, so that the task's are used."""
        return None, None

    @time_limits.setter
    def time_limits(self, _limits: object) -> None: ...


class CommandRequest(OwnTimeLimits):
    """Leaves expiry to the task, which can check whether the command was already carried out."""

    def maybe_expire(self) -> bool:
        """Return False, so that Celery never revokes a command because of its age."""
        return False

    def _announce_revoked(self, reason: str, terminated: bool, signum: Any, expired: bool) -> None:
        """Store the revocation as the answer before its sender is told, unless the message has another one.

        The terminated process may have committed before its end.
        """
        try:
            answer = self.answer_revoked(TaskRevokedError(reason))
        except InvalidMessage:  # no worker carries it out
            super()._announce_revoked(reason, terminated, signum, expired)
            return
        except Exception as error:  # noqa: BLE001  an answer that cannot be stored is not sent
            self._already_revoked = True
            task_ready(self)
            self.give_back(error)
            return
        if isinstance(answer.error, TaskRevokedError):
            super()._announce_revoked(reason, terminated, signum, expired)
            return
        self._already_revoked = True
        task_ready(self)
        try:
            tell(self.task.backend, self.id, answer, self._context)
        except RESULTS_ARE_AWAY as error:
            self.give_back(error)
        else:
            self.acknowledge()

    def answer_revoked(self, error: Exception) -> Answer:
        """Store a revocation as the answer to the command; return the final answer."""
        read = partial(parse, self.task.command, self.args, self.kwargs)
        job = Received.of(self.name, self._context).readable_job(read)
        answer: Answer = self.task.app.runtime.inbox.refuse(job, error)
        return answer


def tell(backend: Any, task_id: str, answer: Answer, request: Any) -> None:
    """Store an answer as the result of a message."""
    if answer.error is None:
        backend.mark_as_done(task_id, answer.result, request=request)
    else:
        backend.mark_as_failure(task_id, answer.error, request=request)


class CommandTask(Task):
    """The base of tasks that answer senders."""

    abstract = True
    keeps_its_turn = True  # where commands that arrived before wait for their group
    Request: Any = "messaging.worker.request:CommandRequest"
