"""Send what commits produce: deliveries to their handlers' tasks, events to other apps."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from celery import Celery
from kombu.exceptions import OperationalError

from messaging import tracing
from messaging.brokers import topology
from messaging.delivery import Delivery
from messaging.errors import InvalidMessage, UnknownMessage, describe
from messaging.messages import Event
from messaging.postgres.audit import UNDER_WAY, Entry
from messaging.postgres.filters import DeliveryFilter
from messaging.postgres.transaction import DATABASE_ERRORS
from messaging.project import Project
from messaging.project.runtime import Runtime
from messaging.telemetry.work import Watch
from messaging.texts import cut
from messaging.wire.validation import from_dict
from messaging.worker.announcer import Announcer
from messaging.worker.queues import ask, waiting
from reliable_celery.checks import MAX_COUNT

logger = logging.getLogger(__name__)

#: Failed deliveries re-run per transaction; a Ctrl-C undoes fewer than that.
TURN = 200

#: Messages in the events queue above which no more deliveries are woken or re-run: an event that is raised
#: now has at most about so many before it.
BACKLOG = 400

#: Longest time in seconds for sending after a commit: a command is answered after that.
SEND_FOR_S = 2.0


@dataclass(frozen=True)
class RerunTurn:
    """Failed deliveries that were re-run in one transaction."""

    deliveries: list[Delivery]
    sent: int  # how many were sent; the relay will send the others, unless this release lacks their handler
    waiting: int = 0  # how many the relay sends as fast as workers take messages


@dataclass
class Dispatcher:
    """Sends a project's deliveries, re-runs what failed, and has events announced."""

    app: Celery
    runtime: Runtime
    #: What follows the work of this process.
    watch: Watch = field(default_factory=Watch)
    announcer: Announcer = field(init=False)
    #: Monotonic seconds after which nothing more is sent.
    until: float = math.inf

    def __post_init__(self) -> None:
        """Make the announcer, which shares app and runtime."""
        self.announcer = Announcer(self.app, self.runtime)

    @property
    def project(self) -> Project:
        """Return the project whose deliveries they are."""
        return self.runtime.project

    def within(self, seconds: float) -> Dispatcher:
        """Return one that stops sending after so many seconds, however slow the broker is."""
        return replace(self, until=time.monotonic() + seconds)

    def after_commit(self, deliveries: Iterable[Delivery]) -> None:
        """Send a commit's deliveries, and request the announcement of its events.

        An error here must not become the answer to a committed command: the relay sends what is missing, also
        where there are too many.
        """
        try:
            self.within(min(SEND_FOR_S, self.runtime.settings.task_time_limit_s / 4)).send(deliveries)
            self.announcer.nudge()
        except Exception:
            logger.exception("Could not send everything after a commit; the relay will send the rest")

    def send(self, deliveries: Iterable[Delivery]) -> int:
        """Send a message per delivery and return how many were sent; the relay will send the others.

        Stops at `until` and if the broker is lost. Any other error concerns one delivery, and the next ones
        are sent.
        """
        sent, deliveries = 0, list(deliveries)
        if not deliveries:
            return sent
        try:
            with self.app.producer_or_acquire() as producer:
                for delivery in deliveries:
                    if time.monotonic() >= self.until:
                        break
                    sent += self._sent(delivery, producer)
        except self._broker_is_lost as error:
            logger.warning("The broker is lost: %s", error)
        if sent < len(deliveries):
            logger.warning("Sent %d of %d deliveries; the relay will send the rest", sent, len(deliveries))
        return sent

    def send_known(self, deliveries: Iterable[Delivery]) -> int:
        """Send deliveries; fail those whose handler or event this release lacks."""
        return self.send([delivery for delivery in deliveries if self._is_known(delivery)])

    def rerun(
        self,
        chosen: DeliveryFilter,
        actor: str,
        limit: int,
        rate: float | None = None,
        pause: Callable[[float], object] = time.sleep,
    ) -> Iterator[RerunTurn]:
        """Re-run failed deliveries in batches, and yield each batch.

        The first `BACKLOG` are sent at once. The others wait for their turn, unless there is a `rate`, so
        that what happens now is not delayed by them.

        At most `rate` per second and `limit` in total. Only those that failed before the start, so that it
        ends even if everything fails again.
        """
        outbox, turn = self.runtime.outbox, TURN if rate is None else max(1, min(TURN, int(rate)))
        before, audit, done = outbox.clock(), self.runtime.audit, 0
        entry = audit.begin(Entry(actor, "rerun", str(chosen), None, 0, UNDER_WAY))
        while limit > 0:
            started, wanted = time.monotonic(), min(turn, limit)
            aside = rate is None and done >= BACKLOG
            deliveries = outbox.rerun(chosen, actor, wanted, before, aside=aside, entry=entry)
            limit, done = limit - len(deliveries), done + len(deliveries)
            is_last = limit <= 0 or len(deliveries) < wanted
            if is_last:
                audit.end(entry)
            if aside:
                yield RerunTurn(deliveries, 0, len(deliveries))
            elif deliveries:
                yield RerunTurn(deliveries, self.send_known(deliveries))
            if is_last:
                return
            if rate is not None and limit > 0:
                pause(max(0.0, turn / rate - (time.monotonic() - started)))

    def raise_event(self, event: Event) -> list[Delivery]:
        """Write a delivery for every handler of an event, send them and return them."""
        deliveries = self.runtime.outbox.raise_by_hand(event)
        self.send_known(deliveries)
        return deliveries

    def room(self) -> int:
        """Return how many more messages the events queue may hold; below 0 if it has too many."""
        return BACKLOG - waiting(self.app, self.project.events_queue)

    def ask(self, job: str, **options: Any) -> None:
        """Request a run of a housekeeping job."""
        ask(self.app, self.project, job, **options)

    def go_on_later(self, job: str, longest_s: float) -> None:
        """Request another run of a housekeeping job that took `longest_s` and has more to do."""
        try:
            self.ask(job, expires=2 * longest_s)
        except Exception as error:  # noqa: BLE001  beat requests it too
            logger.warning("%s goes on with beat's next request: %s", job, describe(error))

    @property
    def _broker_is_lost(self) -> tuple[type[Exception], ...]:
        connection = self.app.producer_pool.connections.connection
        errors: tuple[type[Exception], ...] = connection.recoverable_connection_errors
        return OperationalError, *errors  # kombu's own, when it cannot connect: each attempt takes seconds

    def _sent(self, delivery: Delivery, producer: Any) -> bool:
        try:
            self._send_one(delivery, producer)
        except self._broker_is_lost:
            raise
        except Exception:
            logger.exception("Delivery %s could not be sent", delivery.id)
            return False
        return True

    def _send_one(self, delivery: Delivery, producer: Any) -> None:
        system, queue = topology.system(self.runtime.settings.broker_url), self.project.events_queue
        ids, rerun = (delivery.id, delivery.correlation_id), delivery.reruns > 0
        with tracing.sending(system, queue, *ids, of=delivery.traceparent, rerun=rerun) as headers:
            self.app.send_task(
                self.project.handler_task(delivery.handler),
                task_id=delivery.id,
                queue=queue,
                producer=producer,
                headers=headers,
                # The row counts the attempts, so the back-off continues where it was.
                retries=min(delivery.attempts, MAX_COUNT),
                countdown=delivery.wait_s or None,
                root_id=delivery.correlation_id,
                parent_id=delivery.causation_id,
                argsrepr=cut(shown_event(self.project, delivery)),
                kwargsrepr="{}",
                ignore_result=True,
                add_to_parent=False,
                retry=False,
                confirm_timeout=topology.DELIVERY_CONFIRM_TIMEOUT_S,
            )

    def _is_known(self, delivery: Delivery) -> bool:
        """Fail a delivery that this release cannot handle; a later release can re-run it."""
        if delivery.event_type not in self.project.bus.event_types:
            problem = f"event {delivery.event_type}"
        elif self.project.handler_task(delivery.handler) not in self.app.tasks:
            problem = f"handler {delivery.handler}"
        else:
            return True
        try:
            error = UnknownMessage(f"This release has no {problem}")
            self.runtime.outbox.give_up(delivery.id, "relay", error, as_read=delivery)
        except DATABASE_ERRORS:
            logger.exception("Delivery %s could not be failed: this release has no %s", delivery.id, problem)
        return False


def shown_event(project: Project, delivery: Delivery) -> str:
    """Return a delivery's event for display: its repr, or its name and why it cannot be built or shown."""
    kind = project.bus.event_types.get(delivery.event_type)
    try:
        if kind is None:
            return f"{delivery.event_type}(**{delivery.payload!r})"
        return repr(delivery.event or from_dict(kind, delivery.payload, ignore_unknown=True))
    except InvalidMessage as error:
        return f"{delivery.event_type}: {error}"
    except Exception as error:  # noqa: BLE001  an event's code may raise anything
        return f"{delivery.event_type}: {describe(error)}"
