"""A unit of work whose events become delivery rows in the transaction that raised them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

from sqlalchemy import Engine

from messaging.delivery import Delivery, new_id
from messaging.messages import Command, Event, to_dict
from messaging.postgres.announcements import INSERT_ANNOUNCEMENT
from messaging.postgres.statement import Statement
from messaging.postgres.transaction import Transaction
from messaging.unit_of_work import Raised, UnitOfWork


class Job(Protocol):
    """Why a unit of work runs: a command to answer, or a delivery to make."""

    @property
    def id(self) -> str:
        """Return the id of the message that is handled."""

    @property
    def correlation_id(self) -> str:
        """Return the id of the command that began it all."""

    def begin(self, transaction: Transaction) -> None:
        """Claim the job inside the transaction, where it has something to claim."""

    def finish(self, transaction: Transaction, result: object, /) -> None:
        """Write that the job is done, in the same transaction as what it did."""


@dataclass(frozen=True)
class CommandJob:
    """A command from outside: its inbox row answers copies of the message and repeats under the same key."""

    id: str  # of the message, which its result is found by
    command: Command
    correlation_id: str
    idempotency_key: str | None = None  # the sender's own name for the command, the id where there is none

    @property
    def key(self) -> str:
        """Return what the effect happens once for."""
        return self.idempotency_key or self.id

    @property
    def stored_key(self) -> str | None:
        """Return the key as the inbox has it: null where it is the id."""
        return self.idempotency_key if self.idempotency_key != self.id else None

    def begin(self, transaction: Transaction) -> None:
        """Nothing to claim: a copy waits for the aggregate's lock, then finds its id or its key taken."""

    def finish(self, transaction: Transaction, result: object) -> None:
        """Write the inbox row; unique indexes allow one answer per message and one effect per key."""
        answer = (self.id, self.stored_key, repr(self.command), json.dumps(result))
        transaction.write(ANSWER, answer)


ANSWER = Statement(
    "INSERT INTO inbox (task_id, idempotency_key, command, result) VALUES ($1, $2, $3, $4)",
    *("text", "text", "text", "jsonb"),
)

INSERT_DELIVERY = Statement(
    """
INSERT INTO deliveries
    (id, event_id, event_type, payload, handler, due_at, grace_s, correlation_id, causation_id)
VALUES ($1, $2, $3, $4, $5, now() + make_interval(secs => $6), $6, $7, $8)""",
    *("uuid", "uuid", "text", "jsonb", "text", "double precision", "text", "text"),
)


@dataclass(frozen=True)
class Outbox:
    """Who must be told of an event, and how long its message may take before the relay sends another."""

    handlers_of: Callable[[Event], list[str]]
    grace_s: float  # seconds
    announced: bool = False  # whether other apps are told of each event

    def write(self, events: list[Raised], job: Job, transaction: Transaction) -> list[Delivery]:
        """Write one row per event and handler, and return the deliveries to send once committed."""
        deliveries = []
        for event, key in ((raised.event, raised.key) for raised in events):
            event_id, payload = new_id(), to_dict(event)
            if self.announced:
                facts = (event_id, type(event).__name__, json.dumps(payload), job.correlation_id, job.id, key)
                transaction.write(INSERT_ANNOUNCEMENT, facts)
            for handler in self.handlers_of(event):
                delivery = Delivery(
                    new_id(), type(event).__name__, payload, handler, job.correlation_id, job.id
                )
                deliveries.append(delivery)
                transaction.write(INSERT_DELIVERY, self._row(event_id, delivery))
        return deliveries

    def _row(self, event_id: str, delivery: Delivery) -> tuple[object, ...]:
        return (
            delivery.id,
            event_id,
            delivery.event_type,
            json.dumps(delivery.payload),
            delivery.handler,
            self.grace_s,
            delivery.correlation_id,
            delivery.causation_id,
        )


class PostgresUnitOfWork(UnitOfWork):
    """State, answer and deliveries in one transaction; `deliveries` are those to send after the commit."""

    def __init__(self, engine: Engine, job: Job, outbox: Outbox) -> None:
        self.transaction = Transaction(engine)
        self.job = job
        self.deliveries: list[Delivery] = []
        self._outbox = outbox

    def __enter__(self) -> Self:
        """Take a connection and claim the job."""
        self.transaction.open()
        try:
            self.job.begin(self.transaction)
        except BaseException:
            self.transaction.close()
            raise
        return super().__enter__()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Undo what is not committed and give the connection back."""
        self.transaction.close()

    def commit(self, result: object = None) -> None:
        """Write state, deliveries and answer in one transaction."""
        for repository in self.repositories():
            repository.save()
        deliveries = self._outbox.write(self.take_raised(), self.job, self.transaction)
        self.job.finish(self.transaction, result)
        self.transaction.commit()
        self.deliveries = deliveries

    def rollback(self) -> None:
        """Undo what is not committed."""
        self.transaction.close()

    def collect_new_events(self) -> list[Event]:
        """Return none: the outbox has them, and each handler gets a task of its own."""
        return []
