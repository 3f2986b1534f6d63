"""Send commands as any other app would, and raise events by hand."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from celery import Celery

from messaging.client import Answer, Client
from messaging.delivery import Delivery, new_id
from messaging.messages import Command, Event
from messaging.postgres.inbox import known_errors
from messaging.postgres.transaction import Transaction
from messaging.postgres.unit_of_work import CommandJob
from messaging.runtime import Runtime
from messaging.unit_of_work import Raised
from messaging.worker.housekeeping import send_known


@dataclass(frozen=True)
class Sender:
    """Puts messages into the system from outside."""

    app: Celery
    runtime: Runtime

    @cached_property
    def client(self) -> Client:
        """Return the typed client of the project, as other apps have it."""
        project, settings = self.runtime.project, self.runtime.settings
        return Client(
            project.name,
            settings.broker_url,
            settings.result_backend_url,
            refusals=known_errors(project.refusals).values(),
            signing=settings.signing,
            ca_file=settings.tls_ca_file,
        )

    def send(self, command: Command, key: str | None = None) -> Answer:
        """Enqueue a command. Its effect happens once for each key.

        Raises:
            Unavailable: the broker or the result backend is away.
        """
        return self.client.delay(command, key=key)

    def answer(self, sent: Answer, timeout_s: float) -> Any:
        """Wait for the answer to a command; raises as `Client.answer`."""
        return self.client.answer(sent, timeout_s)

    def raise_event(self, event: Event) -> list[Delivery]:
        """Write a delivery for every handler of an event, send them and return them."""
        job = CommandJob(new_id(), Command(), new_id())
        with Transaction(self.runtime.engine) as transaction:
            deliveries = self.runtime.outbox.write([Raised(event)], job, transaction)
            transaction.commit()
        send_known(self.app, self.runtime, deliveries)
        return deliveries
