"""What a worker declares on RabbitMQ, and what RabbitMQ itself sets aside of this project's messages."""

# mypy: disable-error-code="no-untyped-call"
# kombu is untyped in parts, although it says otherwise.

from __future__ import annotations

from typing import Any

from celery import Celery, bootsteps
from celery.worker.consumer.connection import Connection

from messaging import brokers
from messaging.runtime import Runtime
from reliable_celery import rabbitmq


class DeclareForOthers(bootsteps.StartStopStep):
    """Declares, before a worker takes its first message, what senders, listeners and RabbitMQ itself rely on.

    Senders and listeners have no right to declare it. RabbitMQ drops what it cannot set aside or route.
    """

    requires = (Connection,)

    def include_if(self, consumer: Any) -> bool:
        """Tell whether the broker is RabbitMQ."""
        return brokers.is_rabbitmq(consumer.app.conf.broker_url)

    def start(self, consumer: Any) -> None:
        """Declare the dead-letter queue, the exchange of events, and that of commands with its queue."""
        project = consumer.app.runtime.project
        with consumer.connection.channel() as channel:
            brokers.dead_letter_queue(project.name)(channel).declare()
            brokers.events_exchange(project.name)(channel).declare()
            brokers.commands_exchange(project.name)(channel).declare()
            queue = brokers.task_queue(project.name, project.commands_queue, consumer.app.conf.broker_url)
            queue(channel).declare()
            queue(channel).bind_to(brokers.commands_exchange(project.name), project.commands_queue)


def collect_dead_letters(app: Celery, runtime: Runtime) -> int:
    """Record what RabbitMQ has set aside of this project's messages; return how many.

    Expired runs of housekeeping are dropped: the next run does their work.
    """
    project = runtime.project
    housekeeping = {f"{project.name}.{job}" for job in runtime.settings.housekeeping}
    queue = brokers.dead_letter_queue(project.name)
    return rabbitmq.collect_dead_letters(app, queue, runtime.dead_letters, may_expire=housekeeping)
