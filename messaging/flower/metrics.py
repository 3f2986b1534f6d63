"""Deliveries in Flower's /metrics: a thread counts them regularly; a scrape returns the last counts."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from messaging.brokers.topology import is_rabbitmq
from messaging.delivery import Status
from messaging.errors import describe
from messaging.operator import queues
from messaging.operator.health import Health, Lags
from messaging.operator.queues import Backlog
from messaging.operator.snapshots import holders
from messaging.operator.stats import Counts, Overview, Statistics
from messaging.options import options_of
from messaging.postgres.breakers import Stopped, stop_of
from messaging.postgres.transaction import DATABASE_ERRORS
from messaging.worker.app import MessagingApp

logger = logging.getLogger(__name__)

REFRESH_S = 10.0
#: Counts that are older are not returned any more.
OLD_S = 120.0
#: Counting done deliveries scans the table, so it happens rarely.
REFRESH_DONE_S = 300.0
#: Queues of other apps that are counted; their number is not ours to limit.
MAX_LISTENERS = 50


@dataclass(frozen=True)
class Snapshot:
    """The last counts; no overview while the database is unavailable."""

    overview: Overview | None = None
    heartbeats: Mapping[str, float] = field(default_factory=dict)  # seconds since each job's last run
    lags: Lags | None = None
    held_s: float = 0.0  # age of the oldest transaction that keeps dead rows
    dead_rows: Mapping[str, int] = field(default_factory=dict)  # by table
    backlogs: Mapping[str, Backlog] = field(default_factory=dict)  # by queue; empty while the broker is away
    waits: Counts = field(default_factory=dict)  # by (handler, what for)
    stopped: Mapping[str, Stopped] = field(default_factory=dict)  # by its breaker
    load: int | None = None  # messages of commands and deliveries that wait or are being worked on
    at: float = field(default_factory=time.monotonic)

    @property
    def is_old(self) -> bool:
        """Return whether counting hangs: a server that has stopped answering raises no error."""
        return time.monotonic() - self.at > OLD_S


class DeliveryCollector(Collector):
    """Returns the last snapshot: a scrape runs on Flower's event loop and must neither wait nor fail."""

    def __init__(self, app: MessagingApp) -> None:
        self._app, self._runtime = app, app.runtime
        self._snapshot = Snapshot()
        self._done: Counts | None = None  # None until they are counted for the first time

    def start(self) -> Self:
        """Start counting, repeatedly while the process runs; done deliveries apart, which takes long."""
        for count in self._refresh_for_ever, self._count_done_for_ever:
            threading.Thread(target=count, name="delivery metrics", daemon=True).start()
        return self

    def describe(self) -> Iterable[Metric]:
        """Return nothing, so that registering does not collect."""
        return []

    def collect(self) -> Iterable[Metric]:
        """Return the last snapshot."""
        snapshot, name = self._snapshot, self._runtime.project.name
        if snapshot.is_old:
            snapshot = Snapshot()
        yield GaugeMetricFamily(
            f"{name}_database_up",
            "1 while deliveries can be counted",
            value=int(snapshot.overview is not None),
        )
        if snapshot.overview is not None:
            yield from self._metrics(name, snapshot.overview, snapshot)

    def _metrics(self, name: str, overview: Overview, snapshot: Snapshot) -> Iterable[Metric]:
        counts = {**self._zeros(), **overview.deliveries, **(self._done or {})}
        yield _gauge(f"{name}_deliveries", "Deliveries by state and handler", ["state", "handler"], counts)
        yield GaugeMetricFamily(
            f"{name}_deliveries_oldest_pending_seconds", "For how long a delivery has been pending",
            value=overview.oldest_pending_s,
        )  # fmt: skip
        letters = {(reason,): count for reason, count in overview.dead_letters.items()}
        yield _gauge(f"{name}_dead_letters", "Open dead letters by reason", ["reason"], letters)
        reruns = {("schedule",): 0, ("operator",): 0} | {(by,): n for by, n in overview.reruns.items()}
        yield _gauge(f"{name}_reruns_last_hour", "Re-runs of the last hour, by whom", ["by"], reruns)
        # Prometheus renames `job` to `exported_job`, since its own label has that name; `task` stays.
        ages = {(job, job): age for job, age in snapshot.heartbeats.items()}
        yield _gauge(
            f"{name}_housekeeping_age_seconds", "Time since each job last ran", ["job", "task"], ages
        )

        yield from self._stops(name, snapshot)
        yield from _lags(name, snapshot)
        yield from _backlogs(name, snapshot.backlogs)
        if snapshot.load is not None:
            yield GaugeMetricFamily(
                f"{name}_backlog", "Messages that wait or are being worked on", value=snapshot.load
            )

    def _stops(self, name: str, snapshot: Snapshot) -> Iterable[Metric]:
        yield _gauge(
            f"{name}_deliveries_waiting", "Waiting deliveries by what they wait for", ["handler", "why"],
            snapshot.waits,
        )  # fmt: skip
        project = self._runtime.project
        stopped = {
            (handler,): int(stop_of(snapshot.stopped, project.handler_names(handler)) is not None)
            for handler, function in project.bus.event_handlers.items()
            if options_of(function).breaker
        }
        text = "1 while a breaker stops its handler, or lets it try again"
        yield _gauge(f"{name}_breaker_open", text, ["handler"], stopped)

    def _zeros(self) -> Counts:
        """Return a zero for every state of every handler: an alert sees a series before the first failure."""
        handlers = self._runtime.project.bus.event_handlers
        states = [status for status in Status if status is not Status.DONE or self._done is not None]
        return {(str(status), name): 0 for name in handlers for status in states}

    def _refresh_for_ever(self) -> None:
        while True:
            try:
                self.refresh()
            except DATABASE_ERRORS as error:
                logger.warning("Deliveries cannot be counted: %s", type(error).__name__)
                self._snapshot = Snapshot()
            except Exception:
                logger.exception("Deliveries cannot be counted")
                self._snapshot = Snapshot()
            time.sleep(REFRESH_S)

    def _count_done_for_ever(self) -> None:
        while True:
            try:
                self.count_done()
            except Exception as error:  # noqa: BLE001  the last count stays
                logger.warning("Done deliveries cannot be counted: %s", describe(error))
                time.sleep(REFRESH_S)
            else:
                time.sleep(REFRESH_DONE_S)

    def count_done(self) -> None:
        """Count done deliveries now."""
        self._done = Statistics.of(self._runtime).done()

    def refresh(self) -> None:
        """Count everything else now."""
        statistics = Statistics.of(self._runtime)
        heartbeats = {job: beat.age_s for job, beat in self._runtime.heartbeats.read().items()}
        health = Health(self._runtime.engine)
        self._snapshot = Snapshot(
            statistics.open(),
            heartbeats,
            health.lags(),
            max((holder.seconds or 0.0 for holder in holders(self._runtime.engine, 0)), default=0.0),
            health.dead_rows(),
            self._backlogs(),
            statistics.waits(),
            self._runtime.breakers.stopped(),
            self._load(),
        )

    def _backlogs(self) -> Mapping[str, Backlog]:
        try:
            names = set(self._runtime.project.queues)
            if not is_rabbitmq(self._runtime.settings.broker_url):
                names |= set(sorted(queues.listeners(self._app))[:MAX_LISTENERS])
            return queues.backlogs(self._app, sorted(names))
        except Exception as error:  # noqa: BLE001  the deliveries are counted without the broker
            logger.warning("The queues cannot be counted: %s", describe(error))
            return {}

    def _load(self) -> int | None:
        project = self._runtime.project
        try:
            return queues.load(self._app, (project.commands_queue, project.events_queue))
        except Exception as error:  # noqa: BLE001  the deliveries are counted without the broker
            logger.warning("The messages cannot be counted: %s", describe(error))
            return None


def _lags(name: str, snapshot: Snapshot) -> Iterable[Metric]:
    lags = snapshot.lags
    if lags is None:
        return
    for metric, text, value in (
        (
            "relay_lag_seconds",
            "Time since the oldest delivery that the relay has to send was due",
            lags.relay_s,
        ),
        ("announcements", "Events not yet published to other apps", lags.announcements),
        ("announcements_oldest_seconds", "Age of the oldest unpublished event", lags.announcements_s),
        ("database_oldest_snapshot_seconds", "Age of the oldest open snapshot", snapshot.held_s),
        ("database_blocked_sessions", "Sessions that have waited for a lock for seconds", lags.blocked),
    ):
        yield GaugeMetricFamily(f"{name}_{metric}", text, value=value)
    tables = {(table,): count for table, count in snapshot.dead_rows.items()}
    yield _gauge(f"{name}_database_dead_rows", "Rows that a vacuum could remove, by table", ["table"], tables)


def _backlogs(name: str, backlogs: Mapping[str, Backlog]) -> Iterable[Metric]:
    counts = {(queue,): backlog.count for queue, backlog in backlogs.items()}
    ages = {
        (queue,): backlog.oldest_s or 0
        for queue, backlog in backlogs.items()
        if backlog.oldest_s or not backlog.count
    }
    yield _gauge(f"{name}_queue_messages", "Messages that wait in a queue", ["queue"], counts)
    yield _gauge(f"{name}_queue_oldest_seconds", "Age of a queue's oldest message", ["queue"], ages)


def _gauge(name: str, text: str, labels: list[str], values: Mapping[Any, float]) -> GaugeMetricFamily:
    gauge = GaugeMetricFamily(name, text, labels=labels)
    for key, value in sorted(values.items()):
        gauge.add_metric(key, value)
    return gauge
