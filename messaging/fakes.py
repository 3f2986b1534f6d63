"""Ports without a server, for a project's own tests: the bus then runs whole in one process."""

from __future__ import annotations

from copy import deepcopy
from typing import Generic, TypeVar

from messaging.messages import Event
from messaging.unit_of_work import Aggregate, UnitOfWork

A = TypeVar("A", bound=Aggregate)


class InMemoryRepository(Generic[A]):
    """Hands out copies and stores them at the commit, so that a handler that fails leaves no trace."""

    def __init__(self) -> None:
        self.stored: dict[str, A] = {}
        self._touched: dict[str, A] = {}

    @property
    def seen(self) -> list[A]:
        """Return what the handler loaded or added."""
        return list(self._touched.values())

    def load(self, key: str) -> A | None:
        """Return a copy of what is stored under the key; None where nothing is."""
        if key not in self._touched and key in self.stored:
            self._touched[key] = deepcopy(self.stored[key])
        return self._touched.get(key)

    def track(self, key: str, aggregate: A) -> A:
        """Have the aggregate stored at the commit, and return it."""
        self._touched[key] = aggregate
        return aggregate

    def save(self) -> None:
        """Store what the handler touched."""
        self.stored |= self._touched

    def forget(self) -> None:
        """Begin anew; what was not saved is gone."""
        self._touched = {}


class InMemoryUnitOfWork(UnitOfWork):
    """Hands its events to the bus, which handles them at once."""

    def __init__(self) -> None:
        self.committed = 0
        self._new_events: list[Event] = []

    def commit(self, _result: object = None) -> None:
        """Store what was touched and keep its events for the bus."""
        for repository in self.repositories():
            repository.save()
        self.committed += 1
        self._new_events += self.take_events()

    def rollback(self) -> None:
        """Throw away what is not committed."""
        for repository in self.repositories():
            if isinstance(repository, InMemoryRepository):
                repository.forget()

    def collect_new_events(self) -> list[Event]:
        """Return the events since the last call."""
        events, self._new_events = self._new_events, []
        return events
