"""What RabbitMQ itself sets aside, since it came back too often or was rejected, becomes a dead letter."""

# mypy: disable-error-code="no-untyped-call"
# kombu is untyped in parts, although it says otherwise.

from __future__ import annotations

from typing import Any

from celery import Celery, bootsteps
from celery.worker.consumer.connection import Connection

from messaging import brokers
from messaging.runtime import Runtime
from messaging.worker.consumer import letter_of

#: Messages that one run records at most.
BATCH = 500


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
    """Record what RabbitMQ has set aside, and only then take it off its queue; return how many.

    Runs of housekeeping that waited for too long are nobody's loss: the next one does their work.
    """
    collected, project = 0, runtime.project
    ours = {f"{project.name}.{job}" for job in runtime.settings.housekeeping}
    with app.connection_for_read() as connection, connection.channel() as channel:
        queue = brokers.dead_letter_queue(project.name)(channel)
        queue.declare()
        while collected < BATCH and (message := queue.get(accept=None)):
            deaths = (message.headers or {}).get("x-death") or [{}]
            reason = deaths[0].get("reason", "rejected")
            if not (reason == "expired" and message.headers.get("task") in ours):
                why = f"RabbitMQ set it aside: {reason}"
                runtime.dead_letters.add(letter_of(message, "set aside by the broker", why))
            message.ack()
            collected += 1
    return collected
