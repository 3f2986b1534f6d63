"""The port between handlers and storage: one transaction per handler."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

from messaging.delivery import Delivery
from messaging.messages import Event


class Aggregate(Protocol):
    """A consistency boundary that records its events.

    It may also have a `key: str`, unique among all aggregates of the project, of any kind. Other apps get it
    as the subject of its events, so that they can put these in order.
    """

    events: list[Event]


@dataclass(frozen=True)
class Raised:
    """An event, and the key of the aggregate that raised it, if it has one."""

    event: Event
    key: str | None = None


class Repository(Protocol):
    """A store of one kind of aggregate; it tracks those that the handler touched."""

    @property
    def seen(self) -> Sequence[Aggregate]:
        """Return the aggregates that the handler loaded or added."""

    def save(self) -> None:
        """Write the handler's changes; called on commit."""


class UnitOfWork(ABC):
    """One database transaction for one handler; the bus opens and commits it, handlers only use it."""

    #: Whether a handler runs in it; set by the bus.
    in_handler = False

    def __enter__(self) -> Self:
        """Begin; nothing is stored until `commit`."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End; uncommitted changes are rolled back."""
        self.rollback()

    @abstractmethod
    def commit(self, result: object = None) -> list[Delivery]:
        """Commit the handler's changes, its result and its events, all or none.

        Returns the deliveries to send now: one for each handler of each event.
        """

    @abstractmethod
    def rollback(self) -> None:
        """Roll back uncommitted changes."""

    @abstractmethod
    def repositories(self) -> Iterable[Repository]:
        """Return all repositories that handlers may use."""

    def require_ended(self) -> None:
        """Refuse a commit while the handler runs: what it raises afterwards could not undo it.

        Raises:
            RuntimeError: the handler commits.
        """
        if self.in_handler:
            raise RuntimeError("The bus commits the unit of work when the handler has ended")

    def take_events(self) -> list[Raised]:
        """Remove and return the events of touched aggregates, each with its aggregate's key, oldest first."""
        taken: list[Raised] = []
        for repository in self.repositories():
            for aggregate in repository.seen:
                key: str | None = getattr(aggregate, "key", None)
                taken += [Raised(event, key) for event in aggregate.events]
                aggregate.events.clear()
        return taken
