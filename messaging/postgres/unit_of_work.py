"""A unit of work whose events become delivery rows in the transaction that raised them."""

from __future__ import annotations

from typing import Protocol, Self

from sqlalchemy import Engine

from messaging.delivery import Delivery
from messaging.postgres.effects import Effects
from messaging.postgres.outbox import Outbox
from messaging.postgres.transaction import Transaction
from messaging.unit_of_work import UnitOfWork


class Job(Protocol):
    """Why a unit of work runs: a command to answer, or an attempt at a delivery."""

    @property
    def id(self) -> str:
        """Return the id of the handled message."""

    @property
    def correlation_id(self) -> str:
        """Return the id of the original command."""

    @property
    def effects(self) -> Effects:
        """Return what it has caused so far."""

    @property
    def shares(self) -> Transaction | None:
        """Return the transaction that it shares with other jobs; None if it has its own."""

    def finish(self, transaction: Transaction, result: object, /) -> None:
        """Record that the job is done, in the same transaction as its effects."""


class PostgresUnitOfWork(UnitOfWork):
    """State, answer and deliveries in one transaction."""

    def __init__(self, engine: Engine, job: Job, outbox: Outbox) -> None:
        self.transaction = job.shares or Transaction(engine)
        self.job = job
        self._outbox = outbox

    def __enter__(self) -> Self:
        """Get a connection."""
        self.job.effects.clear()
        self.transaction.open()
        return self

    def commit(self, result: object = None) -> list[Delivery]:
        """Write state, deliveries and answer in one transaction."""
        self.require_ended()
        for repository in self.repositories():
            repository.save()
        job, events = self.job, self.take_events()
        deliveries = self._outbox.write(self.transaction, events, job.correlation_id, job.id, job.effects)
        job.finish(self.transaction, result)
        self.transaction.commit()
        return deliveries

    def rollback(self) -> None:
        """Roll back and return the connection."""
        self.transaction.close()
