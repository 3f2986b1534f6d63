"""A task of a group, and what a group does for its tasks."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

from billiard.common import terminate_handler_fired
from celery import Celery, Task
from celery._state import _task_stack
from celery.app.task import Context
from celery.exceptions import WorkerShutdown, WorkerTerminate

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


def prepare(members: Sequence[Member]) -> set[str]:
    """Do the shared work of a group; return the ids of the tasks that will find theirs done."""
    by_group: dict[Group, list[Member]] = {}
    messages = Counter(member.context.id for member in members)
    for member in members:
        if messages[member.context.id] == 1:  # of two with one id, it is not known whose work was done
            by_group.setdefault(member.task.together, []).append(member)
    prepared: set[str] = set()
    for group, some in by_group.items():
        try:
            prepared |= group.prepare(some)
        except (WorkerShutdown, WorkerTerminate):
            raise
        except BaseException:
            if terminate_handler_fired():  # this process was told to end
                raise
            logger.exception("A group of %d tasks is run one by one", len(some))
    return prepared


def results_together(app: Celery) -> AbstractContextManager[None]:
    """Store the results of this block in one message, if the backend can."""
    backend = app.backend
    return backend.together() if isinstance(backend, ResultBackend) else nullcontext()
