"""A project's Celery app: its tasks are made from its message classes and handlers."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, Protocol

from celery import Celery

from messaging.bus import MessageBus
from messaging.project import Project
from messaging.retry import policy_of
from messaging.runtime import Runtime
from messaging.settings import MessagingSettings
from messaging.settings_rules import backoff_too_long
from messaging.worker.bulk import add_bulk_task
from messaging.worker.commands import add_command_tasks
from messaging.worker.dispatcher import Dispatcher
from messaging.worker.events import add_handler_tasks
from messaging.worker.housekeeping import add_housekeeping_tasks
from messaging.worker.rabbitmq import DeclareForOthers
from messaging.worker.shared_memory import keep_shared


class MessagingApp(Celery):
    """A Celery app that knows its project: what it works with, and what sends its deliveries."""

    task_cls = "messaging.worker.request:Task"
    runtime: Runtime
    dispatcher: Dispatcher

    def now(self) -> datetime:
        """Return the time in UTC, our only zone; Celery converts to it three times for each result."""
        return datetime.now(UTC)


class CeleryConfig(Protocol):
    """A module of Celery settings, such as celeryconfig.py."""

    def of_project(self, project: Project, /) -> dict[str, Any]:
        """Return the settings that differ between projects: addresses, queues, schedule."""


def check_retry_policies(bus: MessageBus, settings: MessagingSettings) -> None:
    """Refuse a handler's own policy that does not agree with the settings.

    Raises:
        ValueError: it waits too long between two tries.
    """
    for handler in bus.event_handlers.values():
        policy = policy_of(handler, settings.retry_policy)
        if problem := backoff_too_long(settings, handler.__name__, policy):
            raise ValueError(problem)


def make_app(project: Project, config: CeleryConfig) -> MessagingApp:
    """Return the Celery app of a project."""
    app = MessagingApp(project.name)
    app.config_from_object(config)
    app.conf.update(config.of_project(project))
    settings = project.settings()
    check_retry_policies(project.bus, settings)
    if settings.signing:
        settings.signing.switch_on(app)
    keep_shared()
    app.steps["consumer"].add(DeclareForOthers)
    app.runtime = Runtime(project)
    app.dispatcher = Dispatcher(app, app.runtime)
    add_command_tasks(app.dispatcher)
    add_bulk_task(app.dispatcher)
    add_handler_tasks(app.dispatcher)
    add_housekeeping_tasks(app.dispatcher)
    return app
