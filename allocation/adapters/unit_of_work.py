"""The unit of work of the worker: products in PostgreSQL, mail by SMTP."""

from __future__ import annotations

from typing import Self

from sqlalchemy import Engine

from allocation.adapters.email import MailNotifications
from allocation.adapters.repository import PostgresProductRepository
from allocation.service_layer.unit_of_work import UnitOfWork
from messaging.postgres.unit_of_work import Job, Outbox, PostgresUnitOfWork


class PostgresAllocationUnitOfWork(PostgresUnitOfWork, UnitOfWork):
    """One transaction around one handler."""

    products: PostgresProductRepository

    def __init__(self, engine: Engine, job: Job, outbox: Outbox, notifications: MailNotifications) -> None:
        super().__init__(engine, job, outbox)
        self.notifications = notifications

    def __enter__(self) -> Self:
        """Begin with no product loaded."""
        self.products = PostgresProductRepository(self.transaction)
        return super().__enter__()
