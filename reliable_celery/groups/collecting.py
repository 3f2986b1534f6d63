"""Collect the requests that have arrived together."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice, takewhile
from typing import Any

from celery.worker import state


class Groups:
    """Holds requests until all that have arrived are here; a subclass for each pool then runs them.

    Where the transport does not say how many have arrived, that is when the event loop turns.
    """

    def __init__(self, consumer: Any, limit: int) -> None:
        self.consumer = consumer
        self.limit = limit
        self.run: Callable[[Any], object] = consumer.on_task_request
        self.waiting: deque[Any] = deque()
        self._alone: deque[Any] = deque()

    def on_task_request(self, request: Any) -> object:
        """Run a request at once, or soon with others that have arrived."""
        if not may_join(request) and not self._would_overtake(request):
            return self.run(request)
        self.waiting.append(request)
        if is_last(request):
            self._run_waiting()
        elif len(self.waiting) == 1:
            self.consumer.call_soon(self._run_waiting)
        self.arrived()
        return None

    def arrived(self) -> None:
        """Called for each request that waits."""

    def run_waiting(self) -> None:
        """Run the requests that wait."""

    def forget(self) -> None:
        """Leave waiting requests to the broker."""
        self.waiting.clear()
        self._alone.clear()

    def take(self, most: int) -> list[Any]:
        """Remove and return the first that wait: requests that make a group, or one that runs alone."""
        group = list(takewhile(may_join, islice(self.waiting, most)))
        return [self.waiting.popleft() for _ in range(max(len(group), min(1, len(self.waiting))))]

    def run_alone(self, requests: Sequence[Any]) -> None:
        """Run requests one by one; between two of them the event loop turns, as between single messages."""
        idle = not self._alone
        self._alone.extend(requests)
        if idle:
            self._run_next()

    def _would_overtake(self, request: Any) -> bool:
        return bool(self.waiting or self._alone) and getattr(request.task, "keeps_its_turn", False)

    def _run_waiting(self) -> None:
        # Those that run alone arrived before. When the worker stops, the messages go back to the broker.
        if self.waiting and not self._alone and not stopping():
            self.run_waiting()

    def _run_next(self) -> None:
        if not self._alone or stopping():
            return
        request = self._alone.popleft()
        self.consumer.call_soon(self._run_next if self._alone else self._run_waiting)
        self.run(request)


def stopping() -> bool:
    """Whether the worker was told to stop: its loop makes all its calls before it looks."""
    return any(wish is not None and wish is not False for wish in (state.should_stop, state.should_terminate))


def is_last(request: Any) -> bool:
    """Return whether no other message has arrived; False if its transport does not say so."""
    return not getattr(request.message.channel, "arrived", True)


def may_join(request: Any) -> bool:
    """Return whether a request may be part of a group."""
    return (
        getattr(request.task, "together", None) is not None
        and not request.delivery_info["redelivered"]
        and request.id not in state.revoked
        and not request.stamped_headers
    )
