"""Send commands as any other app would, and raise events by hand."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any

from celery import Celery
from celery.result import AsyncResult

from messaging.delivery import Delivery, new_id
from messaging.messages import IDEMPOTENCY_KEY, Command, Event, to_dict
from messaging.postgres.transaction import Transaction
from messaging.postgres.unit_of_work import CommandJob
from messaging.runtime import Runtime
from messaging.texts import cut
from messaging.unit_of_work import Raised
from messaging.worker.housekeeping import send_known


@dataclass(frozen=True)
class Sender:
    """Puts messages into the system from outside."""

    app: Celery
    runtime: Runtime

    def send(self, command: Command, key: str | None = None) -> AsyncResult[Any]:
        """Enqueue a command; its answer is the result's `get`. Its effect happens once for each key."""
        project, task_id = self.runtime.project, str(uuid.uuid4())
        return self.app.send_task(
            project.command_task(type(command)),
            kwargs=to_dict(command),
            task_id=task_id,
            headers={IDEMPOTENCY_KEY: key or task_id},
            queue=project.commands_queue,
            argsrepr=cut(repr(command)),
            kwargsrepr="{}",
        )

    def raise_event(self, event: Event) -> list[Delivery]:
        """Write a delivery for every handler of an event, send them and return them."""
        job = CommandJob(new_id(), Command(), new_id())
        with Transaction(self.runtime.engine) as transaction:
            deliveries = self.runtime.outbox.write([Raised(event)], job, transaction)
            transaction.commit()
        send_known(self.app, self.runtime, deliveries)
        return deliveries
