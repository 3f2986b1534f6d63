"""Declare what a project needs on RabbitMQ, and record the messages that RabbitMQ dead-letters."""

# mypy: disable-error-code="no-untyped-call"
# kombu is untyped in parts, although it says otherwise.

from __future__ import annotations

from typing import Any

from celery import Celery, bootsteps
from celery.worker.consumer.connection import Connection

from messaging.brokers import topology
from messaging.project.runtime import Runtime
from reliable_celery import rabbitmq


class DeclareForOthers(bootsteps.StartStopStep):
    """Declares everything that senders, listeners and RabbitMQ need before the worker's first message.

    Senders and listeners may not declare it. RabbitMQ drops messages that it cannot dead-letter or route.
    """

    requires = (Connection,)

    def include_if(self, consumer: Any) -> bool:
        """Return whether the broker is RabbitMQ."""
        return topology.is_rabbitmq(consumer.app.conf.broker_url)

    def start(self, consumer: Any) -> None:
        """Declare the dead-letter queue, the exchange of events, and the exchange and queue of commands."""
        project = consumer.app.runtime.project
        with consumer.connection.channel() as channel:
            topology.dead_letter_queue(project.name)(channel).declare()
            topology.events_exchange(project.name)(channel).declare()
            topology.commands_exchange(project.name)(channel).declare()
            queue = topology.task_queue(project.name, project.commands_queue, consumer.app.conf.broker_url)
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
