"""Fakes of the ports, for a project's own tests: the whole bus runs in one process, without servers."""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from typing import Generic, TypeVar

from messaging.delivery import Delivery, new_id
from messaging.messages import Event, to_dict
from messaging.unit_of_work import Aggregate, UnitOfWork
from messaging.wire.validation import from_dict

A = TypeVar("A", bound=Aggregate)


class InMemoryRepository(Generic[A]):
    """Hands out copies and stores them on commit, so that a failing handler changes nothing."""

    def __init__(self) -> None:
        self.stored: dict[str, A] = {}
        self._touched: dict[str, A] = {}

    @property
    def seen(self) -> list[A]:
        """Return the aggregates that the handler loaded or added."""
        return list(self._touched.values())

    def load(self, key: str) -> A | None:
        """Return a copy of the aggregate stored under the key, or None."""
        if key not in self._touched and key in self.stored:
            self._touched[key] = deepcopy(self.stored[key])
        return self._touched.get(key)

    def track(self, key: str, aggregate: A) -> A:
        """Return the aggregate; it is stored on commit."""
        self._touched[key] = aggregate
        return aggregate

    def save(self) -> None:
        """Store the aggregates that the handler touched."""
        self.stored |= self._touched

    def forget(self) -> None:
        """Discard unsaved changes."""
        self._touched = {}


class InMemoryUnitOfWork(UnitOfWork):
    """Commits in memory; `handlers_of` names the handlers of an event, each of which gets a delivery."""

    def __init__(self, handlers_of: Callable[[Event], list[str]]) -> None:
        self.committed = 0
        self.outbox: list[Delivery] = []  # all that were written
        self._handlers_of = handlers_of

    def commit(self, _result: object = None) -> list[Delivery]:
        """Store the touched aggregates, and return the deliveries of their events, as workers read them.

        Raises:
            InvalidMessage: a worker could not read an event again.
        """
        self.require_ended()
        events = [_stored(raised.event) for raised in self.take_events()]
        for repository in self.repositories():
            repository.save()
        self.committed += 1
        deliveries = [
            Delivery(new_id(), type(event).__name__, to_dict(event), handler, "", "", event=event)
            for event in events
            for handler in self._handlers_of(event)
        ]
        self.outbox += deliveries
        return deliveries

    def rollback(self) -> None:
        """Discard uncommitted changes."""
        for repository in self.repositories():
            if isinstance(repository, InMemoryRepository):
                repository.forget()


def _stored(event: Event) -> Event:
    """Return an event as it is once it was stored."""
    return from_dict(type(event), json.loads(json.dumps(to_dict(event))), ignore_unknown=True)
