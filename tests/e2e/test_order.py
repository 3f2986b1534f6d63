"""Deliveries of one key keep the order of their commits, whatever fails, dies or is re-run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import pytest

import celeryconfig
from allocation.config import Settings
from local.processes import programs
from local.processes.child import Child
from local.service import ALLOCATION
from messaging.project import Project
from messaging.worker.app import MessagingApp, make_app
from tests.e2e.conftest import Backend, Broker
from tests.order import before_rename, renamed
from tests.order.handlers import project
from tests.order.proof import TABLES, Proof

ORDER = replace(ALLOCATION, app="tests.order.app")


@pytest.fixture(scope="module")
def broker(broker_of: Callable[[str], Broker]) -> Broker:
    """One kind of broker is enough: it does not matter here."""
    return broker_of("redis")


def sender_of(backend: Backend, project: Project) -> Iterator[MessagingApp]:
    """Return a sender's app."""
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


@pytest.fixture
def app(backend: Backend) -> Iterator[MessagingApp]:
    """The sender's app."""
    yield from sender_of(backend, project)


def workers_of(
    backend: Backend, fails: float, releases: Sequence[str] = ("tests.order.app",) * 2
) -> Iterator[list[Child]]:
    env = {**backend.env, "ORDER_FAILS": str(fails)}
    one, two = (replace(ORDER, app=release) for release in releases)
    work = [
        programs.worker(name, ORDER.work_queues, backend.folder, env, 2, "--without-gossip", service=service)
        for name, service in (("one", one), ("two", two))
    ]
    keeping = [
        programs.housekeeping_worker(backend.folder, env, service=one),
        programs.beat(backend.folder, env, service=one),
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
@pytest.mark.timeout(240)
def test_a_deploy_that_renames_the_handler_keeps_the_order_if_the_release_before_knows_the_name(
    backend: Backend,
):
    """Both releases raise events and handle them at once, for as long as it takes."""
    releases = ("tests.order.before_rename", "tests.order.renamed")
    for old in sender_of(backend, before_rename.project):
        with old.runtime.engine.begin() as connection:
            connection.exec_driver_sql("DROP TABLE IF EXISTS moves, counters;" + TABLES)
        for new in sender_of(backend, renamed.project):
            for work in workers_of(backend, 0.1, releases):
                proof = Proof(old, work, keys=6, events=300, other=new)
                print(f"{proof.run(200):.0f} s, {proof.killed} workers killed")
                proof.check()


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_ten_thousand_events_of_fifty_keys_keep_their_order(backend: Backend, app: MessagingApp):
    proof = prove(backend, app, events=10_000, keys=50, deadline_s=1500, kill_every_s=20)

    assert proof.killed > 10
    assert proof.rerun > 10
