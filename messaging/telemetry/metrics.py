"""What a worker counts and measures. Its processes write to files of their own, which a scrape adds up.

Every label has a fixed set of values, so the number of series is bounded: names of commands, handlers, jobs,
outcomes, and errors that the project declares.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import suppress

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from sqlalchemy import event
from sqlalchemy.pool import ConnectionPoolEntry, Pool

from messaging.errors import MessagingError, Unavailable, WorkerCrashed
from messaging.postgres.inbox import known_errors
from messaging.project import Project
from messaging.telemetry.work import Kind, Outcome, Work
from messaging.texts import class_name

#: Upper bounds in seconds, of work and of waits.
WORK_S = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
WAIT_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 3600)
#: Stands for an error that the project does not declare.
UNEXPECTED = "unexpected"
#: Errors that an alert is for. A rate does not see the first increase of a series that begins with it.
ALARMING = (UNEXPECTED, Unavailable.__name__, WorkerCrashed.__name__)
#: Marks a connection that is counted as being in use.
COUNTED = "counted"


class Measures:
    """Follows work with histograms."""

    def __init__(self, project: Project) -> None:
        self._errors = set(known_errors((MessagingError, *project.refusals)))
        self._tasks = project.command_tasks.keys()
        self._name = name = project.name
        registry = CollectorRegistry()  # what is scraped are the files
        self._commands = Histogram(
            f"{name}_command_seconds", "Time to handle a command", ["command", "outcome"],
            buckets=WORK_S, registry=registry,
        )  # fmt: skip
        self._answers = Histogram(
            f"{name}_command_answer_seconds", "Time from a command's sending to its answer", ["command"],
            buckets=WAIT_S, registry=registry,
        )  # fmt: skip
        self._refusals = Counter(
            f"{name}_refusals", "Commands answered with an error", ["command", "error"], registry=registry
        )
        self._handlers = Histogram(
            f"{name}_handler_seconds", "Time of an attempt at a delivery", ["handler", "outcome"],
            buckets=WORK_S, registry=registry,
        )  # fmt: skip
        self._starts = Histogram(
            f"{name}_handler_start_seconds", "Time from an event's commit to its handler's first attempt",
            ["handler"], buckets=WAIT_S, registry=registry,
        )  # fmt: skip
        self._jobs = Histogram(
            f"{name}_housekeeping_seconds", "Time of a housekeeping job", ["task", "outcome"],
            buckets=WORK_S, registry=registry,
        )  # fmt: skip
        self._busy = Gauge(
            f"{name}_worker_busy", "Messages being handled", registry=registry, multiprocess_mode="livesum"
        )
        self._connections = Gauge(
            f"{name}_worker_database_connections", "Connections to PostgreSQL in use", registry=registry,
            multiprocess_mode="livesum",
        )  # fmt: skip
        self._show_zeros(project.command_tasks, project.bus.event_handlers)
        event.listen(Pool, "checkout", self._taken)
        event.listen(Pool, "checkin", self._returned)

    def begin(self, work: Work) -> None:
        """Count the message as being handled, unless it is a part of another."""
        if work.kind is not Kind.COMMAND or not work.in_batch:
            self._busy.inc()

    def end(self, work: Work, _begun: None) -> None:
        """Measure it."""
        if work.kind is not Kind.COMMAND or not work.in_batch:
            self._busy.dec()
        if work.kind is Kind.COMMAND and work.task in self._tasks:
            self._command(work)
        elif work.kind is Kind.DELIVERY and work.handler is not None:
            self._handlers.labels(work.handler, work.outcome).observe(work.seconds)
            if work.waited_s is not None:
                self._starts.labels(work.handler).observe(work.waited_s)
        elif work.kind is Kind.HOUSEKEEPING:
            self._jobs.labels(work.task, work.outcome).observe(work.seconds)

    def pool_size(self, size: int) -> Metric:
        """Return how many messages the worker can handle at once."""
        return GaugeMetricFamily(
            f"{self._name}_worker_pool_size", "Messages that can be handled at once", value=size
        )

    def _taken(self, _connection: object, record: ConnectionPoolEntry, _proxy: object) -> None:
        with suppress(Exception):  # else whoever connects would take it for an error of the database
            self._connections.inc()
            record.info[COUNTED] = True

    def _returned(self, _connection: object, record: ConnectionPoolEntry) -> None:
        """Count a connection as returned if it was taken: the pool also returns what could not connect."""
        with suppress(Exception):
            if record.info.pop(COUNTED, False):
                self._connections.dec()

    def _command(self, work: Work) -> None:
        self._commands.labels(work.task, work.outcome).observe(work.seconds)
        if work.sent_at is not None:  # by another clock
            self._answers.labels(work.task).observe(max(0.0, time.time() - work.sent_at))
        if work.outcome is Outcome.REFUSED and work.error is not None:
            error = class_name(work.error)
            self._refusals.labels(work.task, error if error in self._errors else UNEXPECTED).inc()

    def _show_zeros(self, commands: Iterable[str], handlers: Iterable[str]) -> None:
        """Begin the usual series with zero: a rate then sees the first increase."""
        for command in commands:
            for outcome in (Outcome.DONE, Outcome.REFUSED):
                self._commands.labels(command, outcome)
            for error in ALARMING:
                self._refusals.labels(command, error)
        for handler in handlers:
            for outcome in (Outcome.DONE, Outcome.RETRIED, Outcome.FAILED):
                self._handlers.labels(handler, outcome)
