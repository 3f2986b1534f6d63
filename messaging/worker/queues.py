"""The queues that a project's workers read: what waits in them, and requests for housekeeping."""

from __future__ import annotations

from typing import Any

from celery import Celery
from kombu import Producer

from messaging.project import Project


def ask(app: Celery, project: Project, job: str, **options: Any) -> None:
    """Request a run of a housekeeping job."""
    app.send_task(
        f"{project.name}.{job}",
        queue=project.housekeeping_queue,
        ignore_result=True,
        add_to_parent=False,
        retry=False,
        **options,
    )


def waiting(app: Celery, queue: str, producer: Producer | None = None) -> int:
    """Return how many messages wait in a queue, without those that workers hold."""
    with app.producer_or_acquire(producer) as producer:
        connection = producer.connection
        connection.connect()  # the pool may have closed it, and only publishing opens it again by itself
        # Its own channel: RabbitMQ closes a channel when it is asked for a missing queue.
        with connection.channel() as channel:
            try:
                count: int = channel.queue_declare(queue=queue, passive=True).message_count
            except connection.channel_errors:  # Redis has no empty queues
                return 0
    return count
