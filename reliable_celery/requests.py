"""A message in a worker's main process: it leaves the broker only when its sender has been answered.

`reliable_celery.consumer:Consumer` has all tasks use it whose `Request` is Celery's own. It changes nothing
for tasks that acknowledge early.
"""

from __future__ import annotations

import logging
from typing import Any

from billiard.einfo import ExceptionWithTraceback
from celery.exceptions import BackendError
from celery.worker.request import Request as CeleryRequest
from celery.worker.state import task_ready
from kombu.exceptions import OperationalError
from redis.exceptions import RedisError

from reliable_celery.results import ResultBackend

logger = logging.getLogger(__name__)

#: Why an answer could not be stored.
RESULTS_ARE_AWAY = (BackendError, OperationalError, RedisError, OSError)


class Request(CeleryRequest):
    """Gives a message back where Celery would settle it with work done and no answer, or a wrong one."""

    def on_timeout(self, soft: bool, timeout: float) -> None:
        """Give the message back when its process is ended; Celery also tells the sender that it failed."""
        if soft or not self.task.acks_late or self.task.acks_on_timeout:
            super().on_timeout(soft, timeout)
            return
        task_ready(self)
        logger.error("%s[%s] took longer than %s s; it is given back", self.name, self.id, timeout)
        self.reject(requeue=True)

    def terminate(self, pool: Any, signal: Any = None) -> None:
        """End the process that runs it; in a pool without processes it runs to its end.

        What Celery raises then, when a message that waited is to begin, would keep it in the worker for ever.
        """
        try:
            super().terminate(pool, signal)
        except NotImplementedError:
            logger.warning("%s[%s] cannot be ended in a pool without processes", self.name, self.id)

    def acknowledge(self) -> None:
        """Acknowledge as soon as the answer is stored; a worker may have gone on without waiting for that."""
        backend = self.task.backend
        waits = isinstance(backend, ResultBackend) and backend.when_stored(
            self.id, super().acknowledge, self.give_back
        )
        if not waits:
            super().acknowledge()

    def on_failure(self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False) -> Any:
        """Give the message back when its answer could not be stored; Celery would acknowledge it."""
        error = error_of(exc_info)
        unanswered = getattr(exc_info, "internal", False) and isinstance(error, RESULTS_ARE_AWAY)
        if unanswered and self.task.acks_late:
            task_ready(self)
            self.give_back(error)
            return None
        return super().on_failure(exc_info, send_failed_event, return_ok)

    def give_back(self, error: BaseException) -> None:
        """Have the broker redeliver the message, since its answer could not be stored."""
        logger.warning("%s[%s] could not be answered; it is given back: %r", self.name, self.id, error)
        self.reject(requeue=True)

    def cancel(self, pool: Any, signal: Any = None, emit_retry: bool = True) -> None:
        """Leave a message whose connection was lost to the broker, which redelivers it.

        Celery writes a result here, unless told not to. Where Redis is away that fails, and the end of the
        process is then taken for a revocation: the message is acknowledged and the task never runs.
        """
        super().cancel(pool, signal, emit_retry=emit_retry and not self.task.acks_late)


def error_of(exc_info: Any) -> BaseException:
    """Return the error that a pool reports; some wrap it."""
    error: BaseException = exc_info.exception
    return error.exc if isinstance(error, ExceptionWithTraceback) else error
