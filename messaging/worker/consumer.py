"""The worker's consumer: an unreadable message becomes a dead letter, and its sender gets `InvalidMessage`.

Setting: `worker_consumer = "messaging.worker.consumer:Consumer"`. The app needs a `runtime` with
`dead_letters` and `inbox`. (docs/adr/031)
"""

from __future__ import annotations

from typing import Any

from celery.exceptions import ImproperlyConfigured

from messaging.brokers import topology
from messaging.errors import InvalidMessage
from messaging.messages import Command
from messaging.postgres.inbox import CommandJob
from messaging.worker.rabbitmq import declare_for_others
from messaging.worker.request import OwnTimeLimits, tell
from reliable_celery import errors
from reliable_celery.consumer import Consumer as ReliableConsumer
from reliable_celery.dead_letters import DeadLetterStore


class Consumer(ReliableConsumer):
    """Records refused messages in the project's database, and answers senders from the inbox."""

    #: Also for housekeeping and Celery's own tasks, whose crashes nobody counts.
    request_class = OwnTimeLimits

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.controller.soft_time_limit:
            # It raises at any moment, also after the commit, and would be told as the outcome.
            instead = self.app.runtime.project.variable("task_time_limit_s")
            raise ImproperlyConfigured(f"--soft-time-limit is not supported: set {instead} instead")

    def connect(self) -> Any:
        """Connect, and declare what others need, before any of Celery's steps: theirs have no fixed order."""
        self.connection = connection = super().connect()  # Celery closes it where declaring fails
        if topology.is_rabbitmq(self.app.conf.broker_url):
            declare_for_others(connection, self.app.runtime.project)
        return connection

    def open_dead_letters(self) -> DeadLetterStore:
        """Return the project's store of dead letters."""
        store: DeadLetterStore = self.app.runtime.dead_letters
        return store

    def error_for(self, exc: Exception) -> Exception:
        """Return the error of the contract."""
        error = super().error_for(exc)
        return InvalidMessage(str(error)) if isinstance(error, errors.InvalidMessage) else error

    def tell(self, message: Any, error: Exception, request: Any) -> None:
        """Repeat the earlier answer to the sender of a redelivered message, if there is one.

        Another release may have been able to read the message.
        """
        if (message.delivery_info or {}).get("redelivered"):
            answer = self.app.runtime.inbox.answer(CommandJob(request.id, Command(), request.id))
            if answer is not None:
                tell(self.app.backend, request.id, answer, request)
                return
        super().tell(message, error, request)
