"""Both limits of a handler at once, on real workers of which one is killed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime

import pytest

import celeryconfig
from allocation.config import Settings
from local.processes import programs
from local.processes.child import Child
from local.service import ALLOCATION
from local.waiting import eventually
from messaging.delivery import new_id
from messaging.postgres.transaction import Transaction
from messaging.unit_of_work import Raised
from messaging.worker.app import MessagingApp, make_app
from tests.e2e.conftest import Backend, Broker
from tests.limits.handlers import TABLE, Called, project

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

SERVICE = replace(ALLOCATION, app="tests.limits.app")
EVENTS, KEYS = 40, ("a", "b", "c", "d")

#: Seconds between two runs, as the rate of each handler says.
EVERY_S = {"often_free": 0.2, "often_full": 0.02, "each_key": 0.5}
AT_ONCE = {"often_free": 2, "often_full": 1, "each_key": 1}

#: Seconds by which a run may begin late on a busy machine.
LATE_S = 2.0


@pytest.fixture(scope="module")
def broker(broker_of: Callable[[str], Broker]) -> Broker:
    """One kind of broker is enough: it does not matter here."""
    return broker_of("redis")


@pytest.fixture
def app(backend: Backend) -> Iterator[MessagingApp]:
    """The sender's app."""
    addresses = backend.addresses
    settings = Settings(
        _env_file=None,
        database_url=addresses.database_url,
        broker_url=addresses.broker_url,
        result_backend_url=addresses.result_backend_url,
        relay_grace_s=2,
    )
    app = make_app(replace(project, settings=lambda: settings), celeryconfig)
    yield app
    app.close()
    app.runtime.engine.dispose()


@pytest.fixture
def workers(backend: Backend) -> Iterator[list[Child]]:
    """Two workers, and housekeeping."""
    work = [
        programs.worker(
            name, SERVICE.work_queues, backend.folder, backend.env, 3, "--without-gossip", service=SERVICE
        )
        for name in ("one", "two")
    ]
    keeping = [
        programs.housekeeping_worker(backend.folder, backend.env, service=SERVICE),
        programs.beat(backend.folder, backend.env, service=SERVICE),
    ]
    for child in (*work, *keeping):
        child.start()
    for child in (*work, keeping[0]):
        backend.wait_for_worker(child)
    yield work
    for child in (*work, *keeping):
        child.stop()


def call(app: MessagingApp) -> None:
    """Raise all events in one transaction."""
    with Transaction(app.runtime.engine) as transaction:
        raised = [Raised(Called(KEYS[number % len(KEYS)], number)) for number in range(EVENTS)]
        deliveries = app.runtime.outbox.write(transaction, raised, new_id(), new_id())
        transaction.commit()
    app.dispatcher.after_commit(deliveries)


def most_at_once(runs: list[tuple[datetime, datetime]]) -> int:
    changes = sorted([(began, 1) for began, _ in runs] + [(ended, -1) for _, ended in runs])
    running = most = 0
    for _, change in changes:
        running += change
        most = max(most, running)
    return most


def test_both_limits_hold_at_once_and_hold_up_nobody_else(
    backend: Backend, app: MessagingApp, workers: list[Child]
):
    backend.sql("DROP TABLE IF EXISTS runs; " + TABLE + " ; SELECT 1")
    began = time.monotonic()
    call(app)
    done = "SELECT count(*) FROM runs WHERE handler = :handler"
    took: dict[str, float] = {}

    def all_done() -> bool:
        for handler in (*EVERY_S, "unlimited"):
            if handler not in took and backend.sql(done, handler=handler) == [(EVENTS,)]:
                took[handler] = time.monotonic() - began
        return len(took) == len(EVERY_S) + 1

    eventually(lambda: backend.sql("SELECT 1 FROM runs LIMIT 1"), 30, "the first run")
    workers[0].kill()
    workers[0].start()
    eventually(all_done, 120, "all runs", every=0.3)

    print({handler: round(seconds, 1) for handler, seconds in took.items()})
    assert backend.sql("SELECT handler, number FROM runs GROUP BY 1, 2 HAVING count(*) > 1") == []
    assert took["unlimited"] < min(took["often_free"], took["each_key"]) + LATE_S
    for handler, every_s in EVERY_S.items():
        runs = backend.sql("SELECT key, began, ended FROM runs WHERE handler = :h ORDER BY began", h=handler)
        for key in KEYS if handler == "each_key" else (None,):
            own = [(start, end) for one, start, end in runs if key in (None, one)]
            assert most_at_once(own) <= AT_ONCE[handler], (handler, key)
            for number, (start, _) in enumerate(own):
                since = (start - own[0][0]).total_seconds()
                assert since > number * every_s - LATE_S, (handler, key, number)
