"""A project's Celery app, with tasks built from its message classes and handlers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from datetime import UTC, datetime
from inspect import isasyncgenfunction, iscoroutinefunction, isgeneratorfunction
from typing import Any, Protocol

from celery import Celery

from messaging.bus import Handler, MessageBus
from messaging.options import options_of
from messaging.project import Project
from messaging.project.runtime import Runtime
from messaging.retry import policy_of
from messaging.settings import MessagingSettings
from messaging.settings.rules import backoff_too_long
from messaging.telemetry.install import install
from messaging.worker.bulk import add_bulk_task
from messaging.worker.commands import add_command_tasks
from messaging.worker.dispatcher import Dispatcher
from messaging.worker.events import add_handler_tasks
from messaging.worker.housekeeping import add_housekeeping_tasks
from messaging.worker.message_checks import check_messages
from reliable_celery.checks import MAX_COUNT


class MessagingApp(Celery):
    """A Celery app with its project's runtime and dispatcher."""

    runtime: Runtime
    dispatcher: Dispatcher

    def now(self) -> datetime:
        """Return the time in UTC, our only zone; Celery's version converts it three times per result."""
        return datetime.now(UTC)


class CeleryConfig(Protocol):
    """A module of Celery settings, such as celeryconfig.py."""

    def of_project(self, project: Project, /) -> dict[str, Any]:
        """Return the settings that depend on the project: addresses, queues, schedule."""


def check_retry_policies(bus: MessageBus, settings: MessagingSettings) -> None:
    """Refuse a handler's own retry policy if it contradicts the settings.

    Raises:
        ValueError: it waits too long between retries, or has more retries than a message may have.
    """
    for handler in bus.event_handlers.values():
        policy = policy_of(handler, settings.retry_policy)
        if not 0 <= policy.max_retries <= MAX_COUNT:
            raise ValueError(
                f"max_retries of the handler {handler.__name__} ({policy.max_retries}) must be 0 to"
                f" {MAX_COUNT}: workers refuse the message of a later retry; scheduled re-runs follow anyway"
            )
        if not 1 <= policy.backoff_s <= policy.backoff_max_s:
            raise ValueError(
                f"backoff_s of the handler {handler.__name__} ({policy.backoff_s:g}) must be 1 to"
                f" backoff_max_s ({policy.backoff_max_s:g}), which is the longest wait"
            )
        if problem := backoff_too_long(settings, handler.__name__, policy):
            raise ValueError(problem)


def check_breakers(bus: MessageBus, settings: MessagingSettings) -> None:
    """Refuse a handler's own breaker if it contradicts the settings.

    Raises:
        ValueError: its first pause is longer than the longest.
    """
    for handler in bus.event_handlers.values():
        breaker = settings.completed(options_of(handler)).breaker
        if breaker and (breaker.pause_s or 0) > (breaker.pause_max_s or 0):
            raise ValueError(
                f"pause_s of the breaker of {handler.__name__} ({breaker.pause_s:g}) must not be more than"
                f" pause_max_s ({breaker.pause_max_s:g}), which is the longest pause"
            )


def check_options(bus: MessageBus) -> None:
    """Refuse options of a handler that do not fit its events.

    Raises:
        ValueError: an event lacks the field that a handler's order or limit depends on.
    """
    for kind, handlers in bus.events.items():
        for handler in handlers:
            options, known = options_of(handler), {field.name for field in fields(kind)}
            for option, name in (("in_order_by", options.in_order_by), ("limit_by", options.limit_by)):
                if name is not None and name not in known:
                    raise ValueError(
                        f"{option} of the handler {handler.__name__} is {name!r}, but the event"
                        f" {kind.__name__} has no such field"
                    )


def check_handlers(project: Project, taken: Iterable[str]) -> None:
    """Refuse event handlers that would get no event, or another handler's; `taken` are other tasks' names.

    A delivery refers to its handler by name only.

    Raises:
        ValueError: the text names the handler.
    """
    for old in project.renamed_handlers:
        if (last := project.names_since(old)[-1]) in project.renamed_handlers:
            raise ValueError(
                f"renamed_handlers leads from {old} to {last} and back: none is the current name"
            )
    known: dict[str, Handler] = {}
    for handler in (handler for handlers in project.bus.events.values() for handler in handlers):
        name = handler.__name__
        if known.setdefault(name, handler) is not handler:
            raise ValueError(f"Two event handlers are called {name}: one would get the events of both")
        for each in project.handler_names(name):
            if f"{project.name}.{each}" in taken:
                raise ValueError(f"No event handler may be called {each}: another task has that name")
        if name in project.renamed_handlers:
            raise ValueError(f"The event handler {name} is in renamed_handlers: another would get its events")
        if iscoroutinefunction(handler) or isgeneratorfunction(handler) or isasyncgenfunction(handler):
            raise ValueError(f"The event handler {name} must be a plain function: a call would not run it")


def make_app(project: Project, config: CeleryConfig) -> MessagingApp:
    """Return the Celery app of a project."""
    app = MessagingApp(project.name)
    app.config_from_object(config)
    app.conf.update(config.of_project(project))
    settings = project.settings()
    check_retry_policies(project.bus, settings)
    check_breakers(project.bus, settings)
    check_options(project.bus)
    if settings.signing:
        settings.signing.switch_on(app)
    app.runtime = Runtime(project)
    app.dispatcher = Dispatcher(app, app.runtime, install(app.runtime))
    add_bulk_task(app.dispatcher)
    add_housekeeping_tasks(app.dispatcher)
    check_messages(project, app.tasks)
    add_command_tasks(app.dispatcher)
    check_handlers(project, app.tasks)
    add_handler_tasks(app.dispatcher)
    return app
