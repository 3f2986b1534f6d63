"""The base of repositories in PostgreSQL."""

from __future__ import annotations

from typing import Generic, TypeVar

from messaging.postgres.transaction import Transaction
from messaging.unit_of_work import Aggregate

A = TypeVar("A", bound=Aggregate)


class PostgresRepository(Generic[A]):
    """Aggregates of one kind, inside the transaction of a unit of work."""

    def __init__(self, transaction: Transaction) -> None:
        self.seen: list[A] = []
        self.transaction = transaction

    def track(self, aggregate: A) -> A:
        """Return the aggregate; its events are delivered and its changes saved on commit."""
        self.seen.append(aggregate)
        return aggregate

    def save(self) -> None:
        """Write the handler's changes; a repository that has already written them does nothing."""
