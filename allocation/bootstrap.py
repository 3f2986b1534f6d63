"""Puts the project together: the only place that knows all its parts."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Engine

import allocation.adapters
from allocation.adapters.email import SmtpNotifications
from allocation.adapters.unit_of_work import PostgresAllocationUnitOfWork
from allocation.config import Settings, settings
from allocation.domain.errors import AllocationError
from allocation.service_layer.messagebus import bus
from messaging.mail import SmtpServer
from messaging.postgres.unit_of_work import Job, Outbox
from messaging.project import Project


def unit_of_work(
    settings: Settings, engine: Engine, job: Job, outbox: Outbox
) -> PostgresAllocationUnitOfWork:
    """Build the unit of work of one command or one delivery."""
    server = SmtpServer(settings.smtp_url, settings.smtp_timeout_s)
    notifications = SmtpNotifications(server, settings.mail_from, settings.stock_team, job.id)
    return PostgresAllocationUnitOfWork(engine, job, outbox, notifications)


project = Project(
    name="allocation",
    bus=bus,
    settings=settings,
    unit_of_work=unit_of_work,
    refusals=(AllocationError,),
    migrations=Path(allocation.adapters.__file__).parent / "migrations",
)
