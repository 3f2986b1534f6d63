"""Announce events: publish them to other apps, in the order of their commits."""

from __future__ import annotations

import json
import logging
import threading
import time
from dataclasses import dataclass

from celery import Celery

from messaging import tracing
from messaging.brokers import topology
from messaging.postgres.low_water import LowWater
from messaging.project.runtime import Runtime
from messaging.wire.cloud_events import CONTENT_TYPE, Announcement, cloud_event
from messaging.worker.queues import ask, waiting

logger = logging.getLogger(__name__)

#: Events per transaction. A run starts small and doubles, so that even a run that is cut short (a lost
#: connection, a killed process, the time limit) leaves fewer events for the next.
FIRST_BATCH, BATCH = 10, 160

#: Seconds after which a run leaves the rest to the next one, so that relay and re-runs get their turn.
LONGEST_RUN_S = 5.0


@dataclass
class Announcer:
    """Publishes a project's events to other apps."""

    app: Celery
    runtime: Runtime
    #: Monotonic seconds; events committed until then will be announced.
    nudged_until: float = 0.0

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
        exchange = topology.events_exchange(self.runtime.project.name)
        system = topology.system(self.runtime.settings.broker_url)
        with self.app.producer_or_acquire() as producer, producer.batch(BATCH):
            for announcement in announcements:
                ids = announcement.event_id, announcement.correlation_id
                of = announcement.traceparent
                with tracing.sending(system, exchange.name, *ids, of=of, operation="publish") as headers:
                    producer.publish(
                        json.dumps(cloud_event(self.runtime.project.name, announcement)),
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

    def _ask_to_announce(self) -> None:
        """Request `announce`, unless the housekeeping queue has messages: its worker is down or busy then.

        An expiry would not limit the queue: brokers keep expired messages until a worker takes them.
        """
        try:
            with self.app.producer_or_acquire() as producer:
                if not waiting(self.app, self.runtime.project.housekeeping_queue, producer):
                    ask(self.app, self.runtime.project, "announce", producer=producer)
        except Exception as error:  # noqa: BLE001  beat requests it too
            logger.warning("Events will be announced later: %s", error)
