"""Puts the project together; the only module that knows all its parts."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Engine

import allocation.adapters
from allocation.adapters.email import MailNotifications
from allocation.adapters.unit_of_work import PostgresAllocationUnitOfWork
from allocation.config import Settings, settings
from allocation.domain.errors import AllocationError
from allocation.service_layer.messagebus import bus
from messaging.mail import mails_of
from messaging.postgres.unit_of_work import Job, Outbox
from messaging.project import Project


def unit_of_work(
    settings: Settings, engine: Engine, job: Job, outbox: Outbox
) -> PostgresAllocationUnitOfWork:
    """Build the unit of work of one command or one delivery."""
    notifications = MailNotifications(mails_of(settings, job.id), settings.stock_team)
    return PostgresAllocationUnitOfWork(engine, job, outbox, notifications)


project = Project(
    name="allocation",
    bus=bus,
    settings=settings,
    unit_of_work=unit_of_work,
    refusals=(AllocationError,),
    migrations=Path(allocation.adapters.__file__).parent / "migrations",
)
