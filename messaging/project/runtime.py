"""A process's engines and stores, built on first use and never shared with a forked child."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

from sqlalchemy import Engine

from messaging.errors import MessagingError
from messaging.options import options_of
from messaging.postgres.announcements import Announcements
from messaging.postgres.audit import Audit
from messaging.postgres.breakers import Breakers
from messaging.postgres.dead_letters import DeadLetters
from messaging.postgres.due import DueDeliveries
from messaging.postgres.engine import connect
from messaging.postgres.heartbeats import Heartbeats
from messaging.postgres.inbox import Inbox, known_errors
from messaging.postgres.limits import Limits
from messaging.postgres.order import Lanes
from messaging.postgres.outbox import Outbox
from messaging.postgres.pauses import Pauses
from messaging.postgres.reruns import BulkReruns
from messaging.postgres.unit_of_work import Job, PostgresUnitOfWork
from messaging.postgres.waiting import Waiting
from messaging.project.project import Project
from messaging.settings import MessagingSettings

T = TypeVar("T")


class Runtime:
    """Engines and stores of one project."""

    def __init__(self, project: Project) -> None:
        self.project = project
        # By process id: a pool child must not write to a socket that its parent opened.
        self._built: dict[tuple[int, str], Any] = {}
        #: More arguments for the driver; set before the first connection.
        self.connect_args: dict[str, Any] = {}

    @property
    def settings(self) -> MessagingSettings:
        """Return the project's settings, read once."""
        return self._once("settings", self.project.settings)

    @property
    def engine(self) -> Engine:
        """Return this process's engine with its pool.

        A thread holds one connection while a handler runs, and may need another. A limit would let threads
        that hold one wait for others that do the same.
        """
        return self._once("engine", lambda: self._connect(pool_size=0))  # as many as its threads need

    @property
    def outbox(self) -> Outbox:
        """Return the outbox of deliveries."""
        return self._once("outbox", self._outbox)

    @property
    def due(self) -> DueDeliveries:
        """Return the relay's search for due deliveries."""
        return self._once("due", lambda: DueDeliveries(self.outbox, self.settings.task_time_limit_s))

    @property
    def inbox(self) -> Inbox:
        """Return the inbox of commands."""
        return self._once("inbox", self._inbox)

    @property
    def heartbeats(self) -> Heartbeats:
        """Return the last runs of housekeeping."""
        return self._once("heartbeats", lambda: Heartbeats(self.engine))

    @property
    def dead_letters(self) -> DeadLetters:
        """Return the store of dead letters.

        The worker's main process uses it, rarely or for a flood of letters: one connection, checked before
        each use. A forked child inherits its socket but never uses it, and psycopg2 allows that.
        """
        return self._once(
            "dead_letters",
            lambda: DeadLetters(self._connect(pool_size=1, max_overflow=0, pool_pre_ping=True)),
        )

    @property
    def announcements(self) -> Announcements:
        """Return the outbox of events for other apps."""
        return self._once("announcements", lambda: Announcements(self.engine))

    @property
    def pauses(self) -> Pauses:
        """Return the pauses of handlers and events."""
        return self._once("pauses", lambda: Pauses(self.engine))

    @property
    def waiting(self) -> Waiting:
        """Return the deliveries that wait."""
        return self._once("waiting", lambda: Waiting(self.engine, self.settings.relay_grace_s))

    @property
    def lanes(self) -> Lanes:
        """Return the deliveries that keep an order."""
        return self._once("lanes", self._lanes)

    @property
    def audit(self) -> Audit:
        """Return the record of what operators did."""
        return self._once("audit", lambda: Audit(self.engine))

    @property
    def bulk_reruns(self) -> BulkReruns:
        """Return the re-runs that are under way."""
        return self._once("bulk_reruns", lambda: BulkReruns(self.engine, self.settings.relay_grace_s))

    @property
    def breakers(self) -> Breakers:
        """Return the breakers of handlers."""
        return self._once("breakers", lambda: Breakers(self.engine))

    @property
    def limits(self) -> Limits:
        """Return the limits of handlers."""
        return self._once("limits", lambda: Limits(self.engine, self.settings.relay_grace_s))

    def unit_of_work(self, job: Job) -> PostgresUnitOfWork:
        """Return a unit of work for one command or one delivery."""
        return self.project.unit_of_work(self.settings, self.engine, job, self.outbox)

    def _connect(self, **options: Any) -> Engine:
        settings = self.settings
        return connect(
            settings.database_url,
            settings.task_time_limit_s,
            settings.command_attempts,
            self.connect_args,
            shared_sessions=settings.database_shared_sessions,
            **options,
        )

    def _inbox(self) -> Inbox:
        errors = known_errors((MessagingError, *self.project.refusals))
        return Inbox(self.engine, self.project.bus, errors)

    def _lanes(self) -> Lanes:
        renamed = {old: self.project.all_names(old)[0] for old in self.project.renamed_handlers}
        return Lanes(self.engine, self.settings.relay_grace_s, renamed)

    def _outbox(self) -> Outbox:
        bus, settings = self.project.bus, self.settings
        names_of = self.project.handler_names
        in_order_by = {
            name: field
            for handler, function in bus.event_handlers.items()
            if (field := options_of(function).in_order_by)
            for name in names_of(handler)
        }
        return Outbox(
            self.engine, bus.handlers_of, settings.relay_grace_s, settings.announce, in_order_by, names_of
        )

    def _once(self, name: str, build: Callable[[], T]) -> T:
        key = os.getpid(), name
        if key not in self._built:
            self._built[key] = build()
        built: T = self._built[key]
        return built
