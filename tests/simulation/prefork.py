"""A worker whose tasks run in a child: two processes with a pipe between them; either may die alone."""

from __future__ import annotations

import pickle
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

from billiard.einfo import ExceptionInfo
from billiard.exceptions import WorkerLostError
from celery.app.trace import trace_task_ret
from celery.exceptions import TaskRevokedError

from messaging.worker.app import MessagingApp
from reliable_celery.groups.prefork import PreforkGroups, run_group
from reliable_celery.requests import error_of
from tests.simulation.broker import Broker, Message
from tests.simulation.mistakes import notice
from tests.simulation.processes import Worker
from tests.simulation.scheduler import Scheduler, current, step

#: How many messages such a worker holds at once.
PREFETCH = 5

#: The only app of a process, as the code in a child asks for it.
current_apps: dict[str, MessagingApp] = {}


def current_app() -> MessagingApp:
    """Return the app of the process that runs."""
    process = current()
    assert process is not None
    return current_apps[process.name]


@dataclass(eq=False)
class Job:
    """What the main process has sent to its child: a task, or a group of them."""

    target: Callable[..., Any]
    args: bytes  # as they cross the pipe
    accepted: Callable[[int, float], object]
    callback: Callable[[Any], object]
    error_callback: Callable[[Any], object]


class PreforkWorker(Worker):
    """The main process with its event loop; `run_child` is the other one."""

    def __init__(
        self,
        app: MessagingApp,
        main: MessagingApp,
        broker: Broker,
        scheduler: Scheduler,
        name: str,
        limit: int,
    ) -> None:
        super().__init__(app, broker, scheduler, name)
        self.main = main
        self.soon: list[tuple[Callable[..., object], tuple[Any, ...]]] = []
        self.messages: dict[str, Message] = {}  # by the id of each
        self.jobs: deque[Job] = deque()  # in the pipe
        self.running: Job | None = None  # in the child
        self.arrived: deque[Callable[[], object]] = deque()  # in the pipe back
        self.places = 1  # that are free in the pool
        self.wanted: deque[Callable[[], object]] = deque()  # by these
        self.is_dead = False
        self.child: Any = None  # the process
        self.pool = self  # type: ignore[assignment]  # it is its own pool and controller, as its groups see it
        self.num_processes = 1
        self.controller = SimpleNamespace(
            _quick_acquire=self.acquire, _quick_release=self.release, _process_task=self.process
        )
        self.groups = PreforkGroups(self, limit)

    # The main process

    def run(self) -> None:
        """Take what has arrived, hear from the child, and turn the event loop, for ever."""
        while True:
            if not self.soon:
                self.scheduler.wait_until(
                    lambda: bool(self.arrived) or self.may_take(PREFETCH), "waits for a message"
                )
            self.read()
            while self.arrived:
                self.arrived.popleft()()
            turn, self.soon = self.soon, []
            for do, args in turn:
                do(*args)

    def read(self) -> None:
        """Take what has arrived."""
        for message in self.take_arrived(PREFETCH):
            self.messages[message.id] = message
            self.groups.on_task_request(self.request_of(message))

    def request_of(self, message: Message) -> Any:
        """Return the request that the main process makes of a message."""
        child, self.app = self.app, self.main
        try:
            return super().request_of(message)
        finally:
            self.app = child

    def hear(self, job: Job, outcome: bytes) -> None:
        """Tell a request, or those of a group, what became of it."""
        self.release()
        failed, value = pickle.loads(outcome)  # noqa: S301  our own
        (job.error_callback if failed else job.callback)(value)

    def call_soon(self, do: Callable[..., object], *args: Any) -> None:
        """Do it in the next turn."""
        self.soon.append((do, args))

    def on_task_request(self, request: Any) -> None:
        """Run a request alone, once there is a place for it."""
        self.acquire(self.process, request)

    def process(self, request: Any) -> None:
        """Send a request to the child, unless it was revoked."""
        try:
            request.execute_using_pool(self)
        except TaskRevokedError:
            self.release()

    def acquire(self, do: Callable[..., object], *args: Any) -> None:
        """Do something once there is a place in the pool."""
        if self.places:
            self.places -= 1
            do(*args)
        else:
            self.wanted.append(partial(do, *args))

    def release(self) -> None:
        """Give a place to the next who wants it."""
        if self.wanted:
            self.wanted.popleft()()
        else:
            self.places += 1

    def apply_async(
        self,
        target: Callable[..., Any],
        args: tuple[Any, ...],
        accept_callback: Callable[[int, float], object],
        callback: Callable[[Any], object],
        error_callback: Callable[[Any], object],
        **_options: Any,
    ) -> Job:
        """Send a job to the child."""
        job = Job(target, pickle.dumps(args), accept_callback, callback, error_callback)
        self.jobs.append(job)
        return job

    def lose(self) -> None:
        """Note that the child is gone, and its job with it."""
        if self.running is not None:
            self.arrived.append(partial(self.hear, self.running, pickle.dumps((True, _lost()))))
            self.running = None

    # The child

    def run_child(self) -> None:
        """Do one job after the other, for ever."""
        while True:
            self.scheduler.wait_until(lambda: bool(self.jobs), "waits for a job")
            step(f"takes a job: {self._shown()}", self._take_job, changes=False)
            if (job := self.running) is not None:
                outcome = pickle.dumps(self._outcome(job, pickle.loads(job.args)))  # noqa: S301  our own
                self.end()
                self.running = None
                self.arrived.append(partial(self.hear, job, outcome))

    def _shown(self) -> str:
        args = pickle.loads(self.jobs[0].args)  # noqa: S301  our own
        jobs = args[1] if self.jobs[0].target is run_group else [args]
        return ", ".join(one[1][-12:] for one in jobs)

    def _take_job(self) -> None:
        if self.jobs:
            self.running = self.jobs.popleft()
            self.arrived.append(partial(self.running.accepted, 0, 0.0))

    def _outcome(self, job: Job, args: tuple[Any, ...]) -> tuple[bool, Any]:
        """Return whether the job failed as a whole, and what came of it."""
        trace = partial(trace_task_ret, app=self.app)
        jobs = args[1] if job.target is run_group else [args]
        messages = [self.messages[one[1]] for one in jobs]
        if len(messages) > 1:
            self.scheduler.tell(
                f"begins a group of {len(messages)}: {', '.join(m.id[-12:] for m in messages)}"
            )
        self.begin(messages)
        try:
            if job.target is run_group:
                outcomes: Sequence[Any] = run_group(trace, jobs)
                for outcome in outcomes:
                    _look_at(outcome)
                return False, outcomes
            outcome = trace(*args)
            _look_at(outcome)
            return False, outcome
        except Exception:  # noqa: BLE001  as the pool tells it
            return True, ExceptionInfo()


def _look_at(outcome: Any) -> None:
    if outcome is not None and outcome[0]:
        notice(error_of(outcome[1]))


def _lost() -> ExceptionInfo:
    """Return what a pool tells of a child that was killed."""
    try:
        raise WorkerLostError("Worker exited prematurely: signal 9 (SIGKILL)")  # noqa: TRY301
    except WorkerLostError:
        return ExceptionInfo()
