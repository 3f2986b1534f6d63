"""Puts the project together; the only module that knows all its parts."""

from __future__ import annotations

from pathlib import Path

import allocation.adapters
from allocation.adapters.repository import read_ahead
from allocation.adapters.unit_of_work import PostgresAllocationUnitOfWork
from allocation.config import settings
from allocation.domain.errors import AllocationError
from allocation.service_layer.messagebus import bus
from messaging.project import Project

project = Project(
    name="allocation",
    bus=bus,
    settings=settings,
    unit_of_work=PostgresAllocationUnitOfWork,
    refusals=(AllocationError,),
    read_ahead=read_ahead,
    migrations=Path(allocation.adapters.__file__).parent / "migrations",
    fakes="tests.fakes:FakeUnitOfWork",
)
