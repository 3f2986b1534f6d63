"""A message in a worker's main process: it leaves the broker only when its sender has been answered."""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

import celery
from billiard.einfo import ExceptionWithTraceback
from celery.exceptions import BackendError, TaskRevokedError
from celery.worker.request import Request as CeleryRequest
from celery.worker.state import task_ready
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from messaging.errors import InvalidMessage
from messaging.postgres.inbox import Answer
from messaging.validation import parse
from messaging.worker.received import Received
from messaging.worker.result_backend import ResultBackend

logger = logging.getLogger(__name__)

#: Why an answer could not be stored.
RESULTS_ARE_AWAY = (BackendError, OperationalError, RedisError, OSError)


class Request(CeleryRequest):
    """Gives a message back where Celery would settle it with work committed and no answer, or a wrong one.

    The inbox or the delivery row knows what was done, so the next copy only answers. What hangs each time is
    parked, like what kills its worker each time.
    """

    @property
    def time_limits(self) -> tuple[None, None]:
        """Return none of the message's own, so that the task's are used.

        A sender's hard limit could end each run before its death is counted; a soft one is an exception at
        any moment, also after the commit, and would be told as the outcome.
        """
        return None, None

    @time_limits.setter
    def time_limits(self, _limits: object) -> None: ...

    def terminate(self, pool: Any, signal: Any = None) -> None:
        """End the process that runs it; where there is none it runs to its end, and that is its answer.

        What Celery raises then, when a message that waited is to begin, would keep it in the worker for ever.
        """
        try:
            super().terminate(pool, signal)
        except NotImplementedError:
            logger.warning("%s[%s] cannot be ended in a pool without processes", self.name, self.id)

    def on_timeout(self, soft: bool, timeout: float) -> None:
        """Give the message back when its process is ended; Celery would tell the sender that it failed."""
        if soft:
            super().on_timeout(soft, timeout)
            return
        task_ready(self)
        logger.error("%s[%s] took longer than %s s; it is given back", self.name, self.id, timeout)
        self.reject(requeue=True)

    def acknowledge(self) -> None:
        """Acknowledge as soon as the answer is stored; a worker may have gone on without waiting for that."""
        backend = self.task.backend
        waits = isinstance(backend, ResultBackend) and backend.when_stored(
            self.id, super().acknowledge, self._give_back
        )
        if not waits:
            super().acknowledge()

    def on_failure(self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False) -> Any:
        """Give the message back when its answer could not be stored; Celery would acknowledge it."""
        error = exc_info.exception
        if isinstance(error, ExceptionWithTraceback):  # from a pool without processes of its own
            error = error.exc
        if getattr(exc_info, "internal", False) and isinstance(error, RESULTS_ARE_AWAY):
            task_ready(self)
            self._give_back(error)
            return None
        return super().on_failure(exc_info, send_failed_event, return_ok)

    def _give_back(self, error: BaseException) -> None:
        logger.warning("%s[%s] could not be answered; it is given back: %r", self.name, self.id, error)
        self.reject(requeue=True)

    def _announce_cancelled(self, emit_retry: bool = True) -> None:  # noqa: ARG002  Celery's signature
        """Leave a message whose connection was lost to the broker, which brings it again.

        Celery writes a result here. Where Redis is away that fails, and the end of the process is then taken
        for a revocation: the message is acknowledged and the sender told that it never ran.
        """
        self._already_cancelled = True
        task_ready(self)
        self.send_event("task-cancelled")


class CommandRequest(Request):
    """Leaves expiry to the task, which knows whether the command was carried out before."""

    def maybe_expire(self) -> bool:
        """Tell Celery never to revoke a command because of its age."""
        return False

    def _announce_revoked(self, reason: str, terminated: bool, signum: Any, expired: bool) -> None:
        """Make the revocation the answer before its sender is told, unless the message has another one.

        The process that was terminated may have committed all the same.
        """
        try:
            answer = self.answer_revoked(TaskRevokedError(reason))
        except InvalidMessage:  # no worker carries it out
            super()._announce_revoked(reason, terminated, signum, expired)
            return
        except Exception as error:  # noqa: BLE001  what cannot be recorded is not told
            self._already_revoked = True
            task_ready(self)
            self._give_back(error)
            return
        if isinstance(answer.error, TaskRevokedError):
            super()._announce_revoked(reason, terminated, signum, expired)
            return
        self._already_revoked = True
        task_ready(self)
        tell(self.task.backend, self.id, answer, self._context)
        self.acknowledge()

    def answer_revoked(self, error: Exception) -> Answer:
        """Make a revocation the answer to the command; return the one that stands."""
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


class Task(celery.Task):
    """The base of every task: its messages are such requests."""

    abstract = True
    Request: Any = "messaging.worker.request:Request"


class CommandTask(Task):
    """The base of tasks that answer senders."""

    abstract = True
    Request: Any = "messaging.worker.request:CommandRequest"
