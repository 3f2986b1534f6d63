"""Deliveries of one key keep the order of their commits, whatever fails, dies or is re-run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest

import celeryconfig
from allocation.config import Settings
from local.processes import programs
from local.processes.child import Child
from local.service import ALLOCATION
from messaging.worker.app import MessagingApp, make_app
from tests.e2e.conftest import Backend, Broker
from tests.order.handlers import project
from tests.order.proof import TABLES, Proof

ORDER = replace(ALLOCATION, app="tests.order.app")


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
        visibility_timeout_s=8,
        task_time_limit_s=5,
        smtp_timeout_s=4,
        worker_lease_s=6,
        event_backoff_max_s=1,
        relay_grace_s=2,
    )
    app = make_app(replace(project, settings=lambda: settings), celeryconfig)
    yield app
    app.close()
    app.runtime.engine.dispose()


def workers_of(backend: Backend, fails: float) -> Iterator[list[Child]]:
    env = {**backend.env, "ORDER_FAILS": str(fails)}
    work = [
        programs.worker(name, ORDER.work_queues, backend.folder, env, 2, "--without-gossip", service=ORDER)
        for name in ("one", "two")
    ]
    keeping = [
        programs.housekeeping_worker(backend.folder, env, service=ORDER),
        programs.beat(backend.folder, env, service=ORDER),
    ]
    for child in (*work, *keeping):
        child.start()
    for child in (*work, keeping[0]):
        backend.wait_for_worker(child)
    yield work
    for child in (*work, *keeping):
        child.stop()


def prove(
    backend: Backend, app: MessagingApp, events: int, keys: int, deadline_s: float, kill_every_s: float = 4
) -> Proof:
    """Run the proof on new workers."""
    with app.runtime.engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE IF EXISTS moves, counters;" + TABLES)
    for work in workers_of(backend, fails=0.2):
        proof = Proof(app, work, keys=keys, events=events, kill_every_s=kill_every_s)
        seconds = proof.run(deadline_s)
        proof.check()
        print(
            f"{events:,} events of {keys} keys in {seconds:.0f} s: {proof.killed} workers killed,"
            f" {proof.rerun} deliveries re-run, every key in order"
        )
    return proof


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_each_keys_effects_are_in_the_order_of_the_commits(backend: Backend, app: MessagingApp):
    proof = prove(backend, app, events=400, keys=8, deadline_s=120)

    assert proof.killed > 0
    assert proof.rerun > 0


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_ten_thousand_events_of_fifty_keys_keep_their_order(backend: Backend, app: MessagingApp):
    proof = prove(backend, app, events=10_000, keys=50, deadline_s=1500, kill_every_s=20)

    assert proof.killed > 10
    assert proof.rerun > 10
