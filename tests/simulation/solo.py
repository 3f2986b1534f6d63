"""A worker of one process, whose event loop runs the tasks itself, as groups where several have arrived."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from messaging.worker.app import MessagingApp
from reliable_celery.groups.solo import SoloGroups
from tests.simulation.broker import Broker, Message
from tests.simulation.processes import QUEUES, Worker
from tests.simulation.scheduler import Scheduler

#: How many messages such a worker holds at once.
PREFETCH = 5


class SoloWorker(Worker):
    """The event loop of a worker with the solo pool, as far as `SoloGroups` and the results need it."""

    def __init__(
        self, app: MessagingApp, broker: Broker, scheduler: Scheduler, name: str, limit: int
    ) -> None:
        super().__init__(app, broker, scheduler, name)
        self.soon: list[tuple[Callable[..., object], tuple[Any, ...]]] = []
        self.messages: dict[int, Message] = {}  # by the request that is made of each
        backend: Any = app.backend
        backend.confirm_later(self.call_soon)
        self.groups = Groups(self, limit) if limit > 1 else None
        self.receive = self.groups.on_task_request if self.groups else self.on_task_request

    def run(self) -> None:
        """Take what has arrived, and turn the event loop, for ever."""
        while True:
            if not self.soon:
                self.scheduler.wait_until(lambda: bool(self.broker.due(QUEUES)), "waits for a message")
            self.read()
            turn, self.soon = self.soon, []
            for do, args in turn:
                do(*args)

    def read(self) -> None:
        """Take what has arrived."""
        for message in self.take_arrived(PREFETCH):
            request = self.request_of(message)
            self.messages[id(request)] = message
            self.receive(request)

    def call_soon(self, do: Callable[..., object], *args: Any) -> None:
        """Do it in the next turn."""
        self.soon.append((do, args))

    def on_task_request(self, request: Any) -> None:
        """Run a request alone, or in its place of a group."""
        self.scheduler.require_alive()
        is_member = any(one is self.messages[id(request)] for one in self.handling)
        if not is_member:
            self.begin([self.messages[id(request)]])
        request.execute_using_pool(self.pool)
        if not is_member:
            self.end()

    def group_begins(self, requests: list[Any]) -> None:
        """Note what is handled together."""
        messages = [self.messages[id(request)] for request in requests]
        self.scheduler.tell(f"begins a group of {len(messages)}: {', '.join(m.id[-12:] for m in messages)}")
        self.begin(messages)


class Groups(SoloGroups):
    """The real groups of the solo pool, which say what they run."""

    def take(self, most: int) -> list[Any]:
        """Take a group, or one that runs alone."""
        requests = super().take(most)
        if len(requests) > 1:
            self.consumer.group_begins(requests)
        return requests

    def run_alone(self, requests: Sequence[Any]) -> None:
        """Run what a group has left."""
        if self.consumer.handling:
            self.consumer.end()
        super().run_alone(requests)
