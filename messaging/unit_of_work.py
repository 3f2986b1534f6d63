"""The port between handlers and storage: one transaction around one handler."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

from messaging.delivery import Delivery
from messaging.messages import Event


class Aggregate(Protocol):
    """A consistency boundary that records what happened to it.

    It may also have a `key: str`, which tells it from every other aggregate of the project, of whatever kind.
    Other apps get it as the subject of its events, by which they can put these in order.
    """

    events: list[Event]


@dataclass(frozen=True)
class Raised:
    """An event, and the key of the aggregate that raised it, where it has one."""

    event: Event
    key: str | None = None


class Repository(Protocol):
    """Where aggregates of one kind are kept; remembers those that the handler touched."""

    @property
    def seen(self) -> Sequence[Aggregate]:
        """Return what the handler loaded or added."""

    def save(self) -> None:
        """Write what the handler changed; it runs at the commit."""


class UnitOfWork(ABC):
    """One database transaction around one handler; the bus opens and commits it, handlers only use it."""

    #: Whether a handler runs in it; set by the bus.
    in_handler = False

    def __enter__(self) -> Self:
        """Begin; nothing is kept until `commit`."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End; what was not committed is undone."""
        self.rollback()

    @abstractmethod
    def commit(self, result: object = None) -> list[Delivery]:
        """Make the handler's work, its result and its events permanent, all of them or none.

        Returns what is to be sent now: a delivery for each handler of each event.
        """

    @abstractmethod
    def rollback(self) -> None:
        """Undo what is not committed."""

    @abstractmethod
    def repositories(self) -> Iterable[Repository]:
        """Return every repository that handlers may use."""

    def require_ended(self) -> None:
        """Refuse a commit while the handler runs: what it raises afterwards could not undo it.

        Raises:
            RuntimeError: the handler commits.
        """
        if self.in_handler:
            raise RuntimeError("The bus commits the unit of work when the handler has ended")

    def take_events(self) -> list[Raised]:
        """Take the events off the touched aggregates, each with its aggregate's key, oldest first."""
        taken: list[Raised] = []
        for repository in self.repositories():
            for aggregate in repository.seen:
                key: str | None = getattr(aggregate, "key", None)
                taken += [Raised(event, key) for event in aggregate.events]
                aggregate.events.clear()
        return taken
