"""A message in a worker's main process: it is acknowledged only when its sender has an answer.

`reliable_celery.consumer:Consumer` makes all tasks use it that do not set a `Request` of their own. It
changes nothing for tasks that acknowledge early.
"""

from __future__ import annotations

import logging
import threading
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
    """Requeues a message where Celery would settle it after its work with no answer or a wrong one."""

    def on_timeout(self, soft: bool, timeout: float) -> None:
        """Requeue the message when its process is killed; Celery would also tell the sender of a failure."""
        if soft or not self.task.acks_late or self.task.acks_on_timeout:
            super().on_timeout(soft, timeout)
            return
        task_ready(self)
        logger.error("%s[%s] took longer than %s s; it is requeued", self.name, self.id, timeout)
        self.reject(requeue=True)

    def terminate(self, pool: Any, signal: Any = None) -> None:
        """Kill the process that runs it; in a pool without processes it runs to its end.

        Celery raises there; for a waiting message that is about to start, that would keep it for ever.
        """
        try:
            super().terminate(pool, signal)
        except NotImplementedError:
            logger.warning("%s[%s] cannot be terminated in a pool without processes", self.name, self.id)

    def acknowledge(self) -> None:
        """Acknowledge as soon as the answer is stored; the worker may have continued before that."""
        backend = self.task.backend
        waits = isinstance(backend, ResultBackend) and backend.when_stored(
            self.id, super().acknowledge, self.give_back
        )
        if not waits:
            super().acknowledge()
        if not self.task.acks_late:
            self._send_acknowledgement()

    def _send_acknowledgement(self) -> None:
        """Have the broker know before the task runs, where our transport would wait for others.

        In a pool of threads the event loop acknowledges, a moment later: a thread of the pool must not touch
        the acknowledgements that the loop collects.
        """
        channel, in_loop = self.message.channel, threading.current_thread() is threading.main_thread()
        if in_loop and self.message.acknowledged and hasattr(channel, "flush_acks"):
            channel.attempt(channel.flush_acks)

    def on_failure(self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False) -> Any:
        """Requeue the message when its answer could not be stored; Celery would acknowledge it."""
        error = error_of(exc_info)
        unanswered = getattr(exc_info, "internal", False) and isinstance(error, RESULTS_ARE_AWAY)
        if unanswered and self.task.acks_late:
            task_ready(self)
            self.give_back(error)
            return None
        if isinstance(error, MemoryError) and return_ok:
            # Its task has ended and was answered; Celery would end the worker, and the next one that gets it.
            exc_info.exception = RuntimeError(repr(error))
        return super().on_failure(exc_info, send_failed_event, return_ok)

    def _announce_revoked(self, *args: Any) -> None:
        """Requeue a revoked message when its sender could not be told; Celery would keep it for ever."""
        try:
            super()._announce_revoked(*args)
        except RESULTS_ARE_AWAY as error:
            self._already_revoked = True
            self.give_back(error)

    def give_back(self, error: BaseException) -> None:
        """Have the broker redeliver the message, since its answer could not be stored."""
        logger.warning("%s[%s] could not be answered; it is requeued: %r", self.name, self.id, error)
        self.reject(requeue=True)

    def cancel(self, pool: Any, signal: Any = None, emit_retry: bool = True) -> None:
        """Leave a message to the broker when the connection is lost; the broker redelivers it.

        By default Celery writes a result here. If Redis is unavailable that fails, and the end of the process
        is then treated as a revocation: the message is acknowledged and the task never runs.
        """
        super().cancel(pool, signal, emit_retry=emit_retry and not self.task.acks_late)


def error_of(exc_info: Any) -> BaseException:
    """Return the error that a pool reports; some pools wrap it."""
    error: BaseException = exc_info.exception
    return error.exc if isinstance(error, ExceptionWithTraceback) else error
