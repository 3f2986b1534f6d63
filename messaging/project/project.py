"""A project's definition for the bus: messages, handlers, settings, unit of work and tables."""

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
from messaging.postgres.shared import ReadAhead
from messaging.postgres.unit_of_work import Job, PostgresUnitOfWork
from messaging.settings import MessagingSettings

UnitOfWorkFactory = Callable[[Any, Engine, Job, Outbox], PostgresUnitOfWork]  # (settings, …)


@dataclass(frozen=True)
class Names:
    """Names derived from a project's name: queues, tasks and environment variables."""

    name: str

    @property
    def commands_queue(self) -> str:
        """The queue of other apps' commands."""
        return f"{self.name}.commands"

    @property
    def events_queue(self) -> str:
        """The queue of deliveries."""
        return f"{self.name}.events"

    @property
    def housekeeping_queue(self) -> str:
        """A separate queue, so that a backlog cannot starve housekeeping."""
        return f"{self.name}.housekeeping"

    @property
    def queues(self) -> tuple[str, str, str]:
        """Return all queues."""
        return self.commands_queue, self.events_queue, self.housekeeping_queue

    def variable(self, setting: str) -> str:
        """Return the environment variable of a setting."""
        return f"{self.name}_{setting}".upper()


@dataclass(frozen=True)
class Project(Names):
    """A project on the bus.

    Attributes:
        bus: the messages and their handlers.
        settings: reads the settings; called when they are first needed.
        unit_of_work: makes the unit of work of a command or a delivery.
        migrations: a folder of Alembic versions.
        refusals: business errors, which are sent to the sender.
        read_ahead: reads for commands that share a transaction (docs/adr/012).
        renamed_handlers: the new names of event handlers by their old ones, one entry for each change.
        fakes: "module:name" of a unit of work in memory, for the tests that `deliveries reproduce` writes.
    """

    bus: MessageBus
    settings: Callable[[], MessagingSettings]
    unit_of_work: UnitOfWorkFactory
    migrations: Path
    refusals: tuple[type[Exception], ...] = ()
    read_ahead: ReadAhead | None = None
    renamed_handlers: Mapping[str, str] = field(default_factory=dict)
    fakes: str = ""

    @cached_property
    def command_tasks(self) -> dict[str, type[Command]]:
        """Return the commands by the names of their tasks: `CreateBatch` is `<project>.create_batch`."""
        return {task_name(self.name, kind): kind for kind in self.bus.commands}

    def handler_task(self, handler: str) -> str:
        """Return the task name of an event handler, by its current name."""
        return f"{self.name}.{self.names_since(handler)[-1]}"

    def all_names(self, handler: str) -> tuple[str, ...]:
        """Return all names of an event handler, of which this is one; the current one comes first."""
        return self.handler_names(self.names_since(handler)[-1])

    def handler_names(self, handler: str) -> tuple[str, ...]:
        """Return the names under which deliveries of an event handler are stored: this one and older ones."""
        older = (old for old in self.renamed_handlers if old != handler)
        return handler, *(old for old in older if handler in self.names_since(old))

    def names_since(self, handler: str) -> list[str]:
        """Return this name of an event handler and those that it was given later, the current one last.

        In a circle none is current; the project does not start then.
        """
        names = [handler]
        while (newer := self.renamed_handlers.get(names[-1])) is not None and newer not in names:
            names.append(newer)
        return names
