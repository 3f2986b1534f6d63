"""What repositories in PostgreSQL have in common."""

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
        """Have the aggregate's events delivered and its changes saved, and return it."""
        self.seen.append(aggregate)
        return aggregate

    def save(self) -> None:
        """Write what the handler changed; a repository that wrote it already has nothing left to do."""
