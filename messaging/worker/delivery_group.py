"""Deliveries that arrived together share a transaction, if their handlers allow it (docs/adr/012).

A delivery whose handler fails is made again by its task, alone, and only that counts as an attempt.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, replace
from uuid import UUID

from celery.app.task import Context

from messaging import tracing
from messaging.bus import Handler
from messaging.delivery import Delivery
from messaging.errors import MessagingError, describe
from messaging.messages import Event
from messaging.options import options_of
from messaging.postgres.attempts import Attempt, claim_all
from messaging.postgres.shared import PATIENCE_MS, SharedTransaction
from messaging.postgres.transaction import DATABASE_ERRORS
from messaging.project.runtime import Runtime
from messaging.telemetry.work import Kind, Watch, Work
from messaging.wire.validation import from_dict
from messaging.worker.sharing import Done, handle_in, last_begin, log_failed
from reliable_celery.groups.member import Member

logger = logging.getLogger(__name__)


def as_id(value: object) -> str:
    """Return the id of a delivery as the database writes it.

    Raises:
        ValueError: it is none.
    """
    return str(UUID(str(value)))


def takes_part(handler: Handler) -> bool:
    """Return whether a handler's deliveries may share a transaction."""
    options = options_of(handler)
    return options.shares_transaction and not options.waits


def work_of(runtime: Runtime, task: str, request: Context, handler: Handler, attempt: Attempt) -> Work:
    """Return what is to be noted about an attempt at a delivery."""
    return Work(
        Kind.DELIVERY,
        task,
        attempt.id,
        runtime.project.events_queue,
        request.root_id or attempt.id,
        request.parent_id,
        handler.__name__,
        (request.retries or 0) + 1,
        attempt.redelivered,
        tracing.checked(request.get(tracing.TRACEPARENT)),
        tracing.checked(request.get(tracing.RERUN_OF)),
        claim=attempt,
    )


@dataclass(frozen=True)
class DeliveryUnit:
    """A claimed delivery that may share a transaction."""

    runtime: Runtime
    handler: Handler
    attempt: Attempt
    message: Event
    work: Work  # what is to be noted about it
    watch: Watch
    around: Callable[[], AbstractContextManager[None]]  # entered while its handler runs

    @property
    def id(self) -> str:
        """Return the id of the delivery, which is that of its message."""
        return self.attempt.id

    def run(self, transaction: SharedTransaction) -> list[Delivery] | None:
        """Run the handler and return new deliveries; None if it fails."""
        self.attempt.shares = transaction
        uow = self.runtime.unit_of_work(self.attempt)
        with self.around(), self.watch.ahead(self.work):
            try:
                with uow:
                    _, deliveries = self.runtime.project.bus.run(self.handler, self.message, uow)
            except DATABASE_ERRORS:
                raise
            except Exception as error:  # noqa: BLE001  its task runs it again, and counts that
                transaction.close()  # still open where its own `__enter__` failed
                logger.info("Delivery %s is made alone: %s", self.id, describe(error))
                return None
        return deliveries


@dataclass(frozen=True)
class Made:
    """A delivery that is committed: the attempt, the new deliveries, and how long it took."""

    work: Work
    done: Done[list[Delivery]]


class DeliveryGroup:
    """The deliveries of messages that arrived together."""

    def __init__(self, runtime: Runtime, watch: Watch) -> None:
        self.runtime, self.watch = runtime, watch
        self._made: dict[str, Made] = {}
        task_of = runtime.project.handler_task
        self._handlers = {task_of(name): it for name, it in runtime.project.bus.event_handlers.items()}

    def take(self, delivery_id: str) -> Made | None:
        """Return what a message came to, once; None if its delivery has yet to be made."""
        return self._made.pop(delivery_id, None)

    def prepare(self, members: Sequence[Member]) -> set[str]:
        """Make the deliveries that can be made together; return their ids."""
        self._made = {}
        by_id: dict[str, Member] = {}
        for member in members:
            with suppress(ValueError):  # its task refuses it
                by_id[as_id(member.context.id)] = member
        try:
            if self.runtime.pauses.seen():  # whether one of them has to wait is decided alone
                return set()
            with SharedTransaction(self.runtime.engine, PATIENCE_MS) as transaction:
                units = list(self._units(transaction, by_id))
                if not units:
                    return set()
                with self.watch.together([unit.work for unit in units]):
                    _, done = handle_in(transaction, self.runtime, units, last_begin(self.runtime))
        except DATABASE_ERRORS as error:
            log_failed(len(by_id), error)
            return set()
        self._made = {unit.id: Made(unit.work, done[unit.id]) for unit in units if unit.id in done}
        return {by_id[delivery_id].context.id for delivery_id in self._made}

    def _units(self, transaction: SharedTransaction, members: Mapping[str, Member]) -> Iterator[DeliveryUnit]:
        """Claim the deliveries; yield those of which no earlier attempt may have died."""
        attempts = [
            Attempt(self.runtime.engine, delivery_id, member.context.hostname)
            for delivery_id, member in members.items()
        ]
        bus, task_of = self.runtime.project.bus, self.runtime.project.handler_task
        for attempt in claim_all(transaction, attempts):
            member, delivery = members[attempt.id], attempt.delivery
            if delivery is None or attempt.is_doubtful or task_of(delivery.handler) != member.task.name:
                continue
            try:
                event = from_dict(bus.event_types[delivery.event_type], delivery.payload, ignore_unknown=True)
            except (KeyError, MessagingError):
                continue
            attempt.delivery = replace(delivery, event=event)
            handler = self._handlers[member.task.name]
            work = work_of(self.runtime, member.task.name, member.context, handler, attempt)
            yield DeliveryUnit(self.runtime, handler, attempt, event, work, self.watch, member.current)
