"""Send what commits produce: deliveries to their handlers' tasks, events to other apps."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from celery import Celery
from kombu import Connection
from kombu.exceptions import OperationalError
from kombu.serialization import dumps

from messaging import tracing
from messaging.brokers import topology
from messaging.dead_letters import PARKED, DeadLetter
from messaging.delivery import Delivery
from messaging.errors import InvalidMessage, UnknownMessage, describe
from messaging.messages import Event
from messaging.postgres.audit import UNDER_WAY, Entry
from messaging.postgres.dead_letters import DeadLetters, NotReplayable
from messaging.postgres.filters import DeliveryFilter
from messaging.postgres.low_water import LowWater
from messaging.postgres.transaction import DATABASE_ERRORS
from messaging.project import Project
from messaging.project.runtime import Runtime
from messaging.telemetry.work import Watch
from messaging.texts import cut
from messaging.wire.cloud_events import CONTENT_TYPE, Announcement, cloud_event
from messaging.wire.validation import from_dict
from reliable_celery.checks import MAX_COUNT

logger = logging.getLogger(__name__)

#: Events per transaction. A run starts small and doubles, so that even a run that is cut short (a lost
#: connection, a killed process, the time limit) leaves fewer events for the next.
FIRST_BATCH, BATCH = 10, 160

#: Seconds after which a run leaves the rest to the next one, so that relay and re-runs get their turn.
LONGEST_RUN_S = 5.0

#: Failed deliveries re-run per transaction; a Ctrl-C undoes fewer than that.
TURN = 200

#: Messages in the events queue above which no more deliveries are woken or re-run: an event that is raised
#: now has at most about so many before it.
BACKLOG = 400

#: Properties of the message itself; the others were added by its transport.
OWN_PROPERTIES = ("correlation_id", "reply_to", "priority", "expiration")


@dataclass(frozen=True)
class RerunTurn:
    """Failed deliveries that were re-run in one transaction."""

    deliveries: list[Delivery]
    sent: int  # how many were sent; the relay will send the others, unless this release lacks their handler
    waiting: int = 0  # how many the relay sends as fast as workers take messages


@dataclass
class Dispatcher:
    """Sends a project's deliveries, re-runs what failed, replays dead letters and announces events."""

    app: Celery
    runtime: Runtime
    #: What follows the work of this process.
    watch: Watch = field(default_factory=Watch)
    #: Monotonic seconds; events committed until then will be announced.
    nudged_until: float = 0.0

    @property
    def project(self) -> Project:
        """Return the project whose deliveries they are."""
        return self.runtime.project

    def after_commit(self, deliveries: Iterable[Delivery]) -> None:
        """Send a commit's deliveries, and request the announcement of its events.

        An error here must not become the answer to a committed command: the relay sends what is missing.
        """
        try:
            self.send(deliveries)
            self.nudge()
        except Exception:
            logger.exception("Could not send everything after a commit; the relay will send the rest")

    def send(self, deliveries: Iterable[Delivery]) -> int:
        """Send a message per delivery and return how many were sent; the relay will send the others.

        Stops if the broker is lost. Any other error concerns one delivery, and the next ones are sent.
        """
        sent = 0
        deliveries = list(deliveries)
        if not deliveries:
            return sent
        try:
            with self.app.producer_or_acquire() as producer:
                for delivery in deliveries:
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
            deliveries = outbox.rerun(chosen, actor, wanted, before, aside=aside)
            limit, done = limit - len(deliveries), done + len(deliveries)
            is_last = limit <= 0 or len(deliveries) < wanted
            audit.go_on(entry, done, "done" if is_last else UNDER_WAY)
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

    def replay(self, letters: DeadLetters, letter_id: str, *, anyway: bool = False) -> DeadLetter:
        """Send a dead letter's message again, to the queue that it came from.

        Raises:
            NotReplayable: it was already settled, this release has no such task (unless `anyway`), or the
                broker has no such queue.
        """
        with letters.replaying(letter_id) as letter:
            if not anyway and letter.task not in self.app.tasks:
                raise NotReplayable(
                    f"This release has no task {letter.task}; the message would come back as a dead letter"
                )
            self._publish_again(letter)
        return letter

    def announce(self) -> int:
        """Publish waiting events, oldest first; return how many."""
        until = time.monotonic() + min(LONGEST_RUN_S, self.runtime.settings.task_time_limit_s / 2)
        published, size, low = 0, FIRST_BATCH, LowWater()
        while time.monotonic() < until:
            with self.runtime.announcements.take(size, low) as announcements:
                self.publish(announcements)
            published += len(announcements)
            if len(announcements) < size:
                break
            size = min(2 * size, BATCH)
        return published

    def publish(self, announcements: list[Announcement]) -> None:
        """Publish events; return when the broker has confirmed them all, else raise."""
        if not announcements:
            return
        exchange = topology.events_exchange(self.project.name)
        system = topology.system(self.runtime.settings.broker_url)
        with self.app.producer_or_acquire() as producer, producer.batch(BATCH):
            for announcement in announcements:
                ids = announcement.event_id, announcement.correlation_id
                of = announcement.traceparent
                with tracing.sending(system, exchange.name, *ids, of=of, operation="publish") as headers:
                    producer.publish(
                        json.dumps(cloud_event(self.project.name, announcement)),
                        exchange=exchange,
                        routing_key=announcement.event_type,
                        declare=[exchange],
                        headers=headers,
                        content_type=CONTENT_TYPE,
                        content_encoding="utf-8",
                        delivery_mode="persistent",
                        confirm_timeout=topology.CONFIRM_TIMEOUT_S,
                    )

    def nudge(self) -> None:
        """Request `announce` soon after a commit, at most once per `announce_delay_s` and process.

        It runs that long after the first event, and so includes all events in between. If the request is
        lost, beat's next `announce` publishes them.
        """
        settings, now = self.runtime.settings, time.monotonic()
        if not settings.announce or now < self.nudged_until:
            return
        self.nudged_until = now + settings.announce_delay_s
        # No countdown: its ETA would use our clock, and a worker with a slower one would hold it for longer.
        timer = threading.Timer(settings.announce_delay_s, self._ask_to_announce)
        timer.daemon = True
        timer.start()

    def waiting_events(self) -> int:
        """Return how many messages wait in the queue of deliveries, without those that workers hold."""
        with self.app.producer_or_acquire() as producer:
            return _waiting(producer.connection, self.project.events_queue)

    def ask(self, job: str, **options: Any) -> None:
        """Request a run of a housekeeping job."""
        self.app.send_task(
            f"{self.project.name}.{job}",
            queue=self.project.housekeeping_queue,
            ignore_result=True,
            add_to_parent=False,
            retry=False,
            **options,
        )

    def _ask_to_announce(self) -> None:
        """Request `announce`, unless the housekeeping queue has messages: its worker is down or busy then.

        An expiry would not limit the queue: brokers keep expired messages until a worker takes them.
        """
        try:
            with self.app.producer_or_acquire() as producer:
                if not _waiting(producer.connection, self.project.housekeeping_queue):
                    self.ask("announce", producer=producer)
        except Exception as error:  # noqa: BLE001  beat requests it too
            logger.warning("Events will be announced later: %s", error)

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

    def _publish_again(self, letter: DeadLetter) -> None:
        own = {name: letter.properties[name] for name in OWN_PROPERTIES if letter.properties.get(name)}
        queue = letter.queue or self.project.commands_queue
        content_type, content_encoding, body = self._message_of(letter)
        with self.app.producer_or_acquire() as producer:
            try:
                producer.publish(
                    body,
                    exchange="",
                    routing_key=queue,
                    content_type=content_type,
                    content_encoding=content_encoding,
                    headers=letter.headers,
                    mandatory=True,  # RabbitMQ would drop a message for a queue that does not exist
                    retry=True,
                    retry_policy=self.app.conf.task_publish_retry_policy,
                    **own,
                )
            except producer.connection.channel_errors as error:
                raise NotReplayable(
                    f"The broker did not accept it for the queue {queue}: {describe(error)}"
                ) from None

    def _message_of(self, letter: DeadLetter) -> tuple[str, str, bytes | str]:
        """Return content type, encoding and body as received; sign a worker's own letters if we sign."""
        if letter.reason == PARKED:
            content_type, encoding, body = dumps(json.loads(letter.body), self.app.conf.task_serializer)
            return content_type, encoding, body
        return (
            letter.content_type or "application/octet-stream",
            letter.content_encoding or "binary",
            letter.body,
        )


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


def _waiting(connection: Connection, queue: str) -> int:
    """Return how many messages wait in a queue, without those that workers hold."""
    connection.connect()  # the pool may have closed it, and only publishing opens it again by itself
    # Its own channel: RabbitMQ closes a channel when it is asked for a missing queue.
    with connection.channel() as channel:
        try:
            count: int = channel.queue_declare(queue=queue, passive=True).message_count
        except connection.channel_errors:  # Redis has no empty queues
            return 0
    return count
