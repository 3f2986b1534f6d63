"""What a project hands to the bus: its messages and handlers, its settings, its unit of work, its tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from sqlalchemy import Engine

from messaging.bus import MessageBus
from messaging.messages import Command, task_name
from messaging.postgres.outbox import Outbox
from messaging.postgres.unit_of_work import Job, PostgresUnitOfWork
from messaging.settings import MessagingSettings

UnitOfWorkFactory = Callable[[Any, Engine, Job, Outbox], PostgresUnitOfWork]  # (settings, …)


@dataclass(frozen=True)
class Names:
    """What is named after a project: its queues, its tasks, its environment variables."""

    name: str

    @property
    def commands_queue(self) -> str:
        """Where other apps enqueue."""
        return f"{self.name}.commands"

    @property
    def events_queue(self) -> str:
        """Where deliveries wait for their handlers."""
        return f"{self.name}.events"

    @property
    def housekeeping_queue(self) -> str:
        """Apart from the others, so that a backlog cannot starve it."""
        return f"{self.name}.housekeeping"

    @property
    def queues(self) -> tuple[str, str, str]:
        """Return all of them."""
        return self.commands_queue, self.events_queue, self.housekeeping_queue

    def variable(self, setting: str) -> str:
        """Return the environment variable of a setting."""
        return f"{self.name}_{setting}".upper()


@dataclass(frozen=True)
class Project(Names):
    """A project on the bus."""

    bus: MessageBus
    settings: Callable[[], MessagingSettings]
    unit_of_work: UnitOfWorkFactory
    migrations: Path  # a folder of Alembic versions
    refusals: tuple[type[Exception], ...] = ()  # errors that are answers, not accidents
    renamed_handlers: Mapping[str, str] = field(default_factory=dict)  # old name → new name

    @cached_property
    def command_tasks(self) -> dict[str, type[Command]]:
        """Return the commands by the names of their tasks: `CreateBatch` is `<project>.create_batch`."""
        return {task_name(self.name, kind): kind for kind in self.bus.commands}

    def handler_task(self, handler: str) -> str:
        """Return the task name of an event handler, by the name it has now."""
        return f"{self.name}.{self.renamed_handlers.get(handler, handler)}"

    def handler_names(self, handler: str) -> tuple[str, ...]:
        """Return the names under which deliveries of an event handler are stored: this one and older ones."""
        return handler, *(old for old, new in self.renamed_handlers.items() if new == handler)
