"""The poison count: a message that keeps killing its workers is set aside as a dead letter.

Setting: `message_max_crashes`, how often a message may be redelivered without being finished; without it
there is no limit. On Redis, our transport counts each time that a redelivered message is started. RabbitMQ
itself counts how often a message was returned to a quorum queue. A first delivery costs nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from billiard.exceptions import TimeLimitExceeded, WorkerLostError
from celery.exceptions import TaskRevokedError
from celery.worker.state import task_ready

from reliable_celery.errors import WorkerCrashed
from reliable_celery.requests import error_of

logger = logging.getLogger(__name__)

REASON = "killed its worker"
SETTLING = ("acknowledge", "give_back")  # the methods that a request calls when its task has ended
#: Other failures are failures of the task.
CRASHES = (WorkerLostError, TimeLimitExceeded, SystemExit, KeyboardInterrupt)
BROKERS_COUNT = "x-delivery-count"  # header in which a quorum queue counts a message's returns


class PoisonCount:
    """Counts how often redelivered messages were started, for one consumer."""

    def __init__(self, consumer: Any, limit: int) -> None:
        self.consumer = consumer
        self.limit = limit
        #: Errors of the broker or its client; a message that cannot be counted is run.
        self.errors: tuple[type[Exception], ...] = (*consumer.connection_errors, *consumer.channel_errors)

    def counting(self, run: Callable[[Any], object]) -> Callable[[Any], object]:
        """Return Celery's `on_task_request` with redelivered messages counted."""

        def run_counted(request: Any) -> object:
            if request.delivery_info["redelivered"]:
                self._watch(request)
            return run(request)

        return run_counted

    def _watch(self, request: Any) -> None:
        """Count the message when it is started, not while it waits behind one that kills its worker.

        Only redelivered messages have these methods replaced, so that others cost nothing.
        """
        begin, fail = request.execute_using_pool, request.on_failure

        def begin_counted(pool: Any, **kwargs: Any) -> Any:
            crashes = self._count(request)
            if crashes > self.limit:
                self._set_aside(request, crashes)
                raise TaskRevokedError(request.id)  # makes Celery free its place in the pool
            return begin(pool, **kwargs)

        def fail_and_forget(exc_info: Any, *args: Any, **kwargs: Any) -> Any:
            outcome = fail(exc_info, *args, **kwargs)
            if not isinstance(error_of(exc_info), CRASHES):
                self._forget(request)
            return outcome

        request.execute_using_pool, request.on_failure = begin_counted, fail_and_forget
        for settle in SETTLING:
            if hasattr(request, settle):
                setattr(request, settle, self._forgetting(request, getattr(request, settle)))

    def _forgetting(self, request: Any, settle: Callable[..., object]) -> Callable[..., None]:
        def settle_and_forget(*args: Any) -> None:
            settle(*args)
            self._forget(request)

        return settle_and_forget

    def _count(self, request: Any) -> int:
        message = request.message
        by_broker = (message.headers or {}).get(BROKERS_COUNT)
        if isinstance(by_broker, int):
            return by_broker
        count = getattr(message.channel, "count_crash", None)
        if count is None:
            return 0
        try:
            crashes: int = count(request.id)
        except self.errors as error:
            logger.warning("Cannot count the crashes of %s[%s]: %r", request.name, request.id, error)
            return 0
        return crashes

    def _forget(self, request: Any) -> None:
        forget = getattr(request.message.channel, "forget_crashes", None)
        if forget is None:
            return
        try:
            forget(request.id)
        except self.errors as error:
            logger.warning("Cannot forget the crashes of %s[%s]: %r", request.name, request.id, error)

    def _set_aside(self, request: Any, crashes: int) -> None:
        task_ready(request)
        error = WorkerCrashed(f"Set aside: it was redelivered {crashes} times and never finished")
        if self.consumer.refuse(request.message, error, REASON):
            self._forget(request)
