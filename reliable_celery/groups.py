"""Let tasks whose messages arrived together share their work (docs/adr/012).

Setting: `message_group_max`, the most messages of a group; without it, or with 1, nothing changes. A task
takes part if it has an attribute `together` (see `Group`). The group's shared work comes first; then each
task runs as always, with its own signals, events, result and acknowledgement, and finds its own work done.

A group is what has already arrived when the event loop would run the first of them: nothing waits for more.
A redelivered message is never part of a group, since it may be the one that kills its workers.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

from celery import Task
from celery._state import _task_stack
from celery.app.task import Context
from celery.exceptions import WorkerShutdown, WorkerTerminate
from celery.worker import state

from reliable_celery.pools.solo import SoloConsumer
from reliable_celery.results import ResultBackend

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Member:
    """A task of a group and its request, before the task runs."""

    task: Task
    context: Context
    args: Sequence[Any]
    kwargs: Mapping[str, Any]

    @contextmanager
    def current(self) -> Iterator[None]:
        """Make it Celery's current task, for log lines and for code that asks for `task.request`."""
        _task_stack.push(self.task)
        self.task.request_stack.push(self.context)
        try:
            yield
        finally:
            self.task.request_stack.pop()
            _task_stack.pop()


class Group(Protocol):
    """Does the shared work of some tasks, which all have this same object as their `together`."""

    def prepare(self, members: Sequence[Member], /) -> set[str]:
        """Do the work of these tasks in advance; return the ids of those that will find it done.

        The others run alone, one by one. So do all of them if it raises.
        """


class Groups:
    """Collects the requests of the solo pool that have arrived together, and runs them as groups."""

    def __init__(self, consumer: Any, limit: int) -> None:
        self.consumer = consumer
        self.limit = limit
        self._run: Callable[[Any], object] = consumer.on_task_request
        self._waiting: deque[Any] = deque()
        self._alone: deque[Any] = deque()

    def on_task_request(self, request: Any) -> object:
        """Run a request at once, or with others that have arrived."""
        if not _may_join(request):
            return self._run(request)
        self._waiting.append(request)
        if len(self._waiting) >= self.limit:
            self.run_waiting()
        elif len(self._waiting) == 1:
            self.consumer.call_soon(self.run_waiting)
        return None

    def forget(self) -> None:
        """Leave waiting requests to the broker: their connection is lost."""
        self._waiting.clear()
        self._alone.clear()

    def run_waiting(self) -> None:
        """Run what has arrived: as a group what can be prepared, the rest alone."""
        if state.should_stop is not None or state.should_terminate is not None:
            return  # the loop is being closed, and the messages go back to the broker
        requests = list(self._waiting)
        self._waiting.clear()
        if len(requests) < 2:  # one is no group
            for request in requests:
                self._run(request)
            return
        prepared = self._prepared(requests)
        with self._results_together():
            for request in requests:
                if request.id in prepared:
                    self._run(request)
        self._run_alone([request for request in requests if request.id not in prepared])

    def _prepared(self, requests: Sequence[Any]) -> set[str]:
        """Return the ids of the requests whose work is done; none if their group fails."""
        by_group: dict[Any, list[Member]] = {}
        for request in requests:
            by_group.setdefault(request.task.together, []).append(_member(request))
        prepared: set[str] = set()
        for group, members in by_group.items():
            try:
                prepared |= group.prepare(members)
            except (WorkerShutdown, WorkerTerminate):
                raise
            except BaseException:
                logger.exception("A group of %d tasks is run one by one", len(members))
        return prepared

    def _run_alone(self, requests: Sequence[Any]) -> None:
        """Run requests one by one; between two of them the event loop turns, as between single messages."""
        idle = not self._alone
        self._alone.extend(requests)
        if idle and self._alone:
            self._run_next()

    def _run_next(self) -> None:
        if not self._alone or state.should_stop is not None or state.should_terminate is not None:
            return
        request = self._alone.popleft()
        if self._alone:
            self.consumer.call_soon(self._run_next)
        self._run(request)

    def _results_together(self) -> Any:
        backend = self.consumer.app.backend
        return backend.together() if isinstance(backend, ResultBackend) else nullcontext()


class GroupingConsumer(SoloConsumer):
    """Runs requests that arrived together as groups, in the solo pool."""

    groups: Groups | None = None
    on_task_request: Callable[[Any], object]

    def open_groups(self, limit: int) -> Groups | None:
        """Let requests be run in groups of up to `limit`; None if they are not."""
        if limit < 2 or not self.is_solo:  # one is no group
            return None
        groups = Groups(self, limit)
        self.on_task_request = groups.on_task_request
        return groups

    def on_close(self) -> None:
        """Forget requests that have not begun: the broker redelivers them."""
        if self.groups is not None:
            self.groups.forget()
        super().on_close()


def _may_join(request: Any) -> bool:
    return (
        getattr(request.task, "together", None) is not None
        and not request.delivery_info["redelivered"]
        and request.id not in state.revoked
        and not request.stamped_headers
    )


def _member(request: Any) -> Member:
    return Member(request.task, request._context, request.args, request.kwargs)
