"""The unit of work of the worker: products in PostgreSQL, mail by SMTP."""

from __future__ import annotations

from typing import Self

from sqlalchemy import Engine

from allocation.adapters.email import MailNotifications
from allocation.adapters.repository import PostgresProductRepository
from allocation.config import Settings
from allocation.service_layer.unit_of_work import UnitOfWork
from messaging.adapters.mail import mails_of
from messaging.postgres.outbox import Outbox
from messaging.postgres.unit_of_work import Job, PostgresUnitOfWork


class PostgresAllocationUnitOfWork(PostgresUnitOfWork, UnitOfWork):
    """One transaction around one handler."""

    products: PostgresProductRepository

    def __init__(self, settings: Settings, engine: Engine, job: Job, outbox: Outbox) -> None:
        super().__init__(engine, job, outbox)
        self.notifications = MailNotifications(
            mails_of(settings, job.id, job.effects.mails), settings.stock_team
        )

    def __enter__(self) -> Self:
        """Begin with no product loaded."""
        self.products = PostgresProductRepository(self.transaction)
        return super().__enter__()
