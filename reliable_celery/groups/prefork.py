"""Groups in the prefork pool: a group is one job, which crosses the pipe to a child once.

A job has the time limit of one task, the shortest of them: a group whose task hangs is killed as that task
would be, and each of its messages is redelivered and runs alone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any
from weakref import ref

from billiard.einfo import ExceptionInfo
from billiard.exceptions import Terminated, TimeLimitExceeded, WorkerLostError
from celery import current_app
from celery.app.task import Context
from celery.app.trace import fast_trace_task, trace_task_ret
from celery.exceptions import BackendStoreError
from celery.worker.state import active_requests, task_ready
from kombu.serialization import loads, prepare_accept_content

from reliable_celery.groups.collecting import Groups, may_join
from reliable_celery.groups.member import Member, prepare, results_together
from reliable_celery.requests import error_of
from reliable_celery.results import ResultBackend

logger = logging.getLogger(__name__)

Job = tuple[str, str, dict[str, Any], Any, str | None, str | None]  # as Celery sends one task to a child
Outcome = tuple[int, Any, float | None]  # as Celery gets it back: failed, value, seconds

#: The child is gone, or will be; other errors are errors of the group.
ENDS_OF_A_CHILD = (WorkerLostError, TimeLimitExceeded, Terminated, SystemExit, KeyboardInterrupt)


def run_group(trace: Callable[..., Outcome], jobs: Sequence[Job]) -> list[Outcome | None]:
    """Run a group in a child: its shared work, then its tasks; None for each task that has to run alone."""
    app: Any = current_app
    prepared = prepare([_member(app, job) for job in jobs])
    outcomes: list[Outcome | None] = [None] * len(jobs)
    with results_together(app):
        for number, job in enumerate(jobs):
            if job[1] in prepared:
                outcomes[number] = trace(*job)
                _watch(app.backend, job[1], outcomes, number)
    return outcomes


def _member(app: Any, job: Job) -> Member:
    name, _, request, body, content_type, content_encoding = job
    if content_type:
        accept = prepare_accept_content(app.conf.accept_content)
        body = loads(body, content_type, content_encoding, accept=accept)
    args, kwargs, embed = body
    context = Context(request, args=args, kwargs=kwargs, called_directly=False, **embed or {})
    return Member(app.tasks[name], context, args, kwargs)


def _watch(backend: Any, task_id: str, outcomes: list[Outcome | None], number: int) -> None:
    """Turn an outcome into a failure, as Celery reports it, if its result cannot be stored."""

    def lost(error: Exception) -> None:
        problem = BackendStoreError(str(error), task_id=task_id)
        outcomes[number] = (1, ExceptionInfo((type(problem), problem, None), internal=True), None)

    if isinstance(backend, ResultBackend):
        backend.when_stored(task_id, lambda: None, lost)


class PreforkGroups(Groups):
    """Gives what waits to the children that are free, in equal shares."""

    _asked = 0  # places in the pool that were asked for and not yet given

    def run_waiting(self) -> None:
        """Ask for as many places as can be used."""
        while self._asked < min(len(self.waiting), self.consumer.pool.num_processes):
            self._asked += 1
            self.consumer.controller._quick_acquire(self._begin)

    def forget(self) -> None:
        """Leave waiting requests to the broker; Celery forgets who asked for places."""
        super().forget()
        self._asked = 0

    def _begin(self) -> None:
        """Use a place in the pool."""
        self._asked = max(0, self._asked - 1)
        controller, pool = self.consumer.controller, self.consumer.pool
        share = -(-len(self.waiting) // max(1, pool.num_processes))
        requests = self.take(min(share, self.limit))
        if len(requests) == 1 and may_join(requests[0]):
            controller._process_task(requests[0])
        elif len(requests) == 1:
            controller._quick_release()
            self.run(requests[0])
        elif requests := [request for request in requests if not request.revoked()]:
            self._apply(pool, requests)
        else:
            controller._quick_release()
        self.run_waiting()

    def _apply(self, pool: Any, requests: list[Any]) -> None:
        trace = fast_trace_task if self.consumer.app.use_fast_trace_task else trace_task_ret
        result = pool.apply_async(
            run_group,
            args=(trace, [_job(request) for request in requests]),
            accept_callback=lambda pid, time: _each(requests, "on_accepted", pid, time),
            timeout_callback=lambda soft, timeout: _on_timeout(requests, soft, timeout),
            callback=lambda outcomes: self._on_success(requests, outcomes),
            error_callback=lambda exc_info: self._on_failure(requests, exc_info),
            soft_timeout=_shortest(one.time_limits[1] or one.task.soft_time_limit for one in requests),
            timeout=_shortest(one.time_limits[0] or one.task.time_limit for one in requests),
            correlation_id=requests[0].id,
        )
        for request in requests:
            request._apply_result = ref(result)

    def _on_success(self, requests: Sequence[Any], outcomes: Sequence[Outcome | None]) -> None:
        alone = []
        for request, outcome in zip(requests, outcomes, strict=True):
            if outcome is None:
                alone.append(request)
            else:
                request.on_success(outcome)
        self._begin_again(alone)

    def _on_failure(self, requests: Sequence[Any], exc_info: Any) -> None:
        """Tell each request of the end of its child; only a terminated task is answered because of that."""
        error, alone = error_of(exc_info), []
        for request in requests:
            if not isinstance(error, ENDS_OF_A_CHILD):
                alone.append(request)
            elif isinstance(error, Terminated | TimeLimitExceeded) and not (
                request._already_revoked or request._already_cancelled
            ):
                task_ready(request)
                request.reject(requeue=True)
            else:
                request.on_failure(exc_info)
        if alone:
            logger.error("A group of %d tasks is run one by one", len(alone), exc_info=error)
        self._begin_again(alone)

    def _begin_again(self, requests: Iterable[Any]) -> None:
        """Run requests alone, as if they had just arrived, but leave those to the broker that it redelivers.

        Until one is started, its child runs others: terminating it must not kill them.
        """
        again = [request for request in requests if not request._already_cancelled]
        for request in again:
            request.time_start = request.worker_pid = request._apply_result = None
            active_requests.discard(request)
        self.run_alone(again)


def _job(request: Any) -> Job:
    return (
        request._type,
        request.id,
        request._request_dict,
        request._body,
        request._content_type,
        request._content_encoding,
    )


def _each(requests: Iterable[Any], method: str, *args: Any) -> None:
    for request in requests:
        getattr(request, method)(*args)


def _on_timeout(requests: Iterable[Any], soft: bool, timeout: float) -> None:
    """Log why a group is killed; it is not known whose fault it was, and all have been requeued."""
    if soft:
        _each(requests, "on_timeout", soft, timeout)
        return
    for request in requests:
        logger.error(
            "%s[%s] took longer than %s s with its group; it is requeued", request.name, request.id, timeout
        )


def _shortest(limits: Iterable[float | None]) -> float | None:
    return min((limit for limit in limits if limit), default=None)
