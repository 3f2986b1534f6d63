"""Publish committed events for other apps, in batches: no task per event, and no waiting in a command."""

from __future__ import annotations

import json
import logging
import threading
import time
from typing import Any

from celery import Celery

from messaging import brokers
from messaging.announcements import CONTENT_TYPE, cloud_event
from messaging.runtime import Runtime

logger = logging.getLogger(__name__)

#: Batches that one run takes at most, so that it ends well before the time limit.
MAX_BATCHES = 20
BATCH = 500


def announce(app: Celery, runtime: Runtime) -> int:
    """Publish the events that wait, oldest first; return how many."""
    published = 0
    for _ in range(MAX_BATCHES):
        with runtime.announcements.take(BATCH) as announcements:
            events = [cloud_event(runtime.project.name, announcement) for announcement in announcements]
            kinds = [announcement.event_type for announcement in announcements]
            _publish(app, runtime, list(zip(kinds, events, strict=True)))
        published += len(events)
        if len(events) < BATCH:
            break
    return published


def _publish(app: Celery, runtime: Runtime, events: list[tuple[str, dict[str, Any]]]) -> None:
    """Hand events to the broker; return when it has them all, raise when it may not."""
    if not events:
        return
    exchange = brokers.events_exchange(runtime.project.name)
    with app.producer_or_acquire() as producer, producer.batch(BATCH):
        for kind, event in events:
            producer.publish(
                json.dumps(event),
                exchange=exchange,
                routing_key=kind,
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
    project = runtime.project
    try:
        app.send_task(
            f"{project.name}.announce",
            queue=project.housekeeping_queue,
            ignore_result=True,
            add_to_parent=False,
            retry=False,
        )
    except Exception as error:  # noqa: BLE001  whatever it is, beat asks too
        logger.warning("Events will be announced later: %s", error)
