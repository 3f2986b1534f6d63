"""Publish committed events for other apps, in batches: no task per event, and no waiting in a command."""

from __future__ import annotations

import json
import logging
import threading
import time

from celery import Celery
from kombu import Connection

from messaging import brokers
from messaging.announcements import CONTENT_TYPE, Announcement, cloud_event
from messaging.runtime import Runtime

logger = logging.getLogger(__name__)

#: Events in one transaction. A run begins with few and takes twice as many each time, so that one that is cut
#: short (a lost connection, a killed process, the time limit) leaves fewer for the next.
FIRST_BATCH, BATCH = 10, 160

#: Seconds after which a run leaves the rest to the next one, so that relay and re-runs have their turn.
LONGEST_RUN_S = 5.0


def announce(app: Celery, runtime: Runtime) -> int:
    """Publish the events that wait, oldest first; return how many."""
    until = time.monotonic() + min(LONGEST_RUN_S, runtime.settings.task_time_limit_s / 2)
    published, size = 0, FIRST_BATCH
    while time.monotonic() < until:
        with runtime.announcements.take(size) as announcements:
            publish(app, runtime, announcements)
        published += len(announcements)
        if len(announcements) < size:
            break
        size = min(2 * size, BATCH)
    return published


def publish(app: Celery, runtime: Runtime, announcements: list[Announcement]) -> None:
    """Hand events to the broker; return when it has them all, raise when it may not."""
    if not announcements:
        return
    exchange = brokers.events_exchange(runtime.project.name)
    with app.producer_or_acquire() as producer, producer.batch(BATCH):
        for announcement in announcements:
            producer.publish(
                json.dumps(cloud_event(runtime.project.name, announcement)),
                exchange=exchange,
                routing_key=announcement.event_type,
                declare=[exchange],
                content_type=CONTENT_TYPE,
                content_encoding="utf-8",
                delivery_mode="persistent",
                confirm_timeout=brokers.CONFIRM_TIMEOUT_S,
            )


def nudge(app: Celery, runtime: Runtime) -> None:
    """Ask for `announce` soon after a commit, at most once per `announce_delay_s` and process.

    It runs that long after the first event, and so has all that came in between; a nudge that is lost costs
    the time until beat's next `announce`.
    """
    settings, now = runtime.settings, time.monotonic()
    if not settings.announce or now < runtime.nudged_until:
        return
    runtime.nudged_until = now + settings.announce_delay_s
    # No countdown: its ETA would be by our clock, and a worker with another one would hold it till then.
    timer = threading.Timer(settings.announce_delay_s, _ask_to_announce, (app, runtime))
    timer.daemon = True
    timer.start()


def _ask_to_announce(app: Celery, runtime: Runtime) -> None:
    """Send `announce`, unless the housekeeping has messages waiting: it is away then, or busy, and beat asks.

    An expiry would not bound the queue: brokers keep what has expired until a worker takes it.
    """
    project = runtime.project
    try:
        with app.producer_or_acquire() as producer:
            if _waiting(producer.connection, project.housekeeping_queue):
                return
            app.send_task(
                f"{project.name}.announce",
                queue=project.housekeeping_queue,
                producer=producer,
                ignore_result=True,
                add_to_parent=False,
                retry=False,
            )
    except Exception as error:  # noqa: BLE001  whatever it is, beat asks too
        logger.warning("Events will be announced later: %s", error)


def _waiting(connection: Connection, queue: str) -> int:
    """Return how many messages wait in a queue; those that a worker holds do not count."""
    # A channel of its own: RabbitMQ closes one on which it is asked for a queue that is not there.
    with connection.channel() as channel:
        try:
            count: int = channel.queue_declare(queue=queue, passive=True).message_count
        except connection.channel_errors:  # on Redis an empty queue is no queue
            return 0
    return count
