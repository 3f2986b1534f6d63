"""Declare what a project needs on RabbitMQ, and record the messages that RabbitMQ dead-letters."""

# mypy: disable-error-code="no-untyped-call"
# kombu is untyped in parts, although it says otherwise.

from __future__ import annotations

from typing import Any

from celery import Celery

from messaging.brokers import topology
from messaging.project import Project
from messaging.project.runtime import Runtime
from reliable_celery import rabbitmq


def declare_for_others(connection: Any, project: Project) -> None:
    """Declare everything that senders, listeners and RabbitMQ itself need before the worker's first message.

    Senders and listeners may not declare it. RabbitMQ drops messages that it cannot dead-letter or route.
    """
    with connection.channel() as channel:
        topology.dead_letter_queue(project.name)(channel).declare()
        topology.events_exchange(project.name)(channel).declare()
        topology.commands_exchange(project.name)(channel).declare()
        queue = topology.task_queue(project.name, project.commands_queue, connection.as_uri())
        queue(channel).declare()
        queue(channel).bind_to(topology.commands_exchange(project.name), project.commands_queue)


def collect_dead_letters(app: Celery, runtime: Runtime) -> int:
    """Record this project's messages that RabbitMQ has dead-lettered; return how many.

    Expired runs of housekeeping are dropped: the next run does their work.
    """
    project = runtime.project
    # Without the database nothing is taken: RabbitMQ 4 drops what is returned more than 20 times.
    with runtime.dead_letters.engine.connect() as connection:
        connection.exec_driver_sql("SELECT 1")
    housekeeping = {f"{project.name}.{job}" for job in runtime.settings.housekeeping}
    queue = topology.dead_letter_queue(project.name)
    return rabbitmq.collect_dead_letters(app, queue, runtime.dead_letters, may_expire=housekeeping)
