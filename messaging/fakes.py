"""Ports without a server, for a project's own tests: the bus then runs whole in one process."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Generic, TypeVar

from messaging.delivery import Delivery, new_id
from messaging.messages import Event, to_dict
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
    """Commits in memory; `handlers_of` says who is owed a delivery of an event, as the outbox does."""

    def __init__(self, handlers_of: Callable[[Event], list[str]]) -> None:
        self.committed = 0
        self.outbox: list[Delivery] = []  # all that were ever written
        self._handlers_of = handlers_of

    def commit(self, _result: object = None) -> list[Delivery]:
        """Store what was touched, and return the deliveries that its events make."""
        self.require_ended()
        for repository in self.repositories():
            repository.save()
        self.committed += 1
        deliveries = [
            Delivery(new_id(), type(event).__name__, to_dict(event), handler, "", "", event=event)
            for event in (raised.event for raised in self.take_events())
            for handler in self._handlers_of(event)
        ]
        self.outbox += deliveries
        return deliveries

    def rollback(self) -> None:
        """Throw away what is not committed."""
        for repository in self.repositories():
            if isinstance(repository, InMemoryRepository):
                repository.forget()
