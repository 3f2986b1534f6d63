"""The real app, client and runtime of each simulated process, made once and used by all schedules."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable
from datetime import datetime
from typing import Any

import celeryconfig
from allocation.bootstrap import project
from allocation.client import AllocationClient
from allocation.config import Settings
from allocation.domain.events import Allocated, BatchCreated, BatchQuantityChanged
from messaging.bus import MessageBus
from messaging.options import HandlerOptions, handler, options_of
from messaging.postgres.shared import SharedTransaction
from messaging.worker.app import MessagingApp, make_app
from tests.simulation.clock import Clock
from tests.simulation.database import Database
from tests.simulation.mistakes import notice
from tests.simulation.results import Backend

INSERT_EFFECT = "INSERT INTO effects (job, key, handler) VALUES (%s, %s, %s)"

#: How many workers a message may kill, and how often the schedule re-runs a delivery.
MAX_CRASHES, RERUN_MAX = 2, 1

#: Seconds until it does so the first time.
COOLDOWN_S = 5

#: The broker of the simulation, for workers and senders.
BROKER = {
    "broker_url": "simulated://",
    "broker_transport": "tests.simulation.broker:Transport",
    "broker_transport_options": {},
}

#: Called with (job, message) when a handler has begun, before it ends well with (job, name, whether it shares
#: its transaction), and with (job) when it has ended.
watch_begin: list[Callable[[Any, Any], object]] = []
watch_end: list[Callable[[Any, str, bool], object]] = []
watch_left: list[Callable[[Any], object]] = []


def settings_on(url: str) -> Settings:
    """Return settings with short times and small numbers, so that little is enough to reach every limit."""
    return Settings(
        _env_file=None,
        database_url=url,
        broker_url="redis://127.0.0.1:1/0",
        command_attempts=3,
        max_crashes=MAX_CRASHES,
        event_max_retries=2,
        event_jitter=False,
        relay_grace_s=4,
        relay_grace_max_s=10,
        rerun_cooldown_s=COOLDOWN_S,
        rerun_cooldown_max_s=60,
        rerun_max=RERUN_MAX,
        done_retention_s=12,
        prune_interval_s=12,
        smtp_timeout_s=5,
    )


@handler(shares_transaction=True)
def tally_allocation(event: Allocated, uow: Any) -> None:
    """Do nothing but what every simulated handler does: leave a row."""


@handler(in_order_by="sku")
def list_correction(event: BatchCreated | BatchQuantityChanged, uow: Any) -> None:
    """Do the same, one after the other for each product."""


#: Handlers that the product does not have, by event.
MORE = {
    Allocated: [tally_allocation],
    BatchCreated: [list_correction],
    BatchQuantityChanged: [list_correction],
}


def counted(handler: Callable[[Any, Any], Any], *, of_command: bool) -> Callable[[Any, Any], Any]:
    """Have a handler write a row of `effects` in its own transaction."""

    @functools.wraps(handler)
    def run(message: Any, uow: Any) -> Any:
        job = uow.job
        watch_begin[-1](job, message)
        key = job.key if of_command else job.id
        uow.transaction.write(INSERT_EFFECT, (job.id, key, handler.__name__))
        try:
            result = handler(message, uow)
            watch_end[-1](job, handler.__name__, isinstance(uow.transaction, SharedTransaction))
        except Exception as error:
            notice(error)
            raise
        finally:
            watch_left[-1](job)
        return result

    return run


def simulated_bus() -> MessageBus:
    """Return the project's bus, each of whose handlers leaves a row."""
    bus = project.bus
    handlers = {kind: counted(handler, of_command=True) for kind, handler in bus.commands.items()}
    functions = {one for found in (*bus.events.values(), *MORE.values()) for one in found}
    reactions = {one: counted(one, of_command=False) for one in functions}
    events = {
        kind: [reactions[one] for one in [*bus.events.get(kind, []), *MORE.get(kind, [])]]
        for kind in {**bus.events, **MORE}
    }
    return MessageBus(handlers, events)


def declare(app: MessagingApp, handler: str, options: HandlerOptions | None) -> None:
    """Give this handler these options, and all others their own."""
    app.runtime._built.pop((os.getpid(), "outbox"), None)  # which knows who is in order by what
    for name, function in app.runtime.project.bus.event_handlers.items():
        own: Any = function
        chosen = options if options is not None and name == handler else options_of(own.__wrapped__)
        own.options = chosen


def app_on(url: str, database: Database, clock: Clock) -> MessagingApp:
    """Return the worker's app with its engine connected once."""
    settings = settings_on(url)
    app = make_app(dataclasses.replace(project, bus=simulated_bus(), settings=lambda: settings), celeryconfig)
    app.conf.update(**BROKER)
    _simulate(app, clock)
    for engine in (app.runtime.engine, app.runtime.dead_letters.engine):
        database.own(engine)
        engine.connect().close()
    return app


def client_on(clock: Clock) -> AllocationClient:
    """Return a sender's client."""
    client = AllocationClient("redis://127.0.0.1:1/0", "redis://127.0.0.1:1/1", timeout_s=30)
    client.app.conf.update(**BROKER)
    _simulate(client.app, clock)
    return client


def _simulate(app: Any, clock: Clock) -> None:
    def now() -> datetime:
        return clock.now()

    app.now = now
    app._backend = Backend(app)
