"""PgBouncer in transaction mode: sessions are shared, and nothing of one transaction reaches another."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg2
import pytest

from allocation.domain.commands import Allocate, CreateBatch
from allocation.domain.events import OutOfStock
from local.servers.postgres_server import Postgres
from messaging.delivery import new_id
from messaging.errors import Unavailable
from messaging.options import handler
from messaging.postgres.inbox import Answer
from messaging.postgres.transaction import Transaction
from messaging.worker.app import MessagingApp
from messaging.worker.commands import handle
from messaging.worker.received import Received
from testing.pgbouncer import PgBouncer, find_binary
from testing.postgres_pair import PostgresPair
from tests.integration.outbox import app_on, ask, put, receive
from tests.programs import missing

ORDERS = 60


@pytest.fixture(scope="module")
def bouncer(postgres: Postgres, server_folder: Path) -> Iterator[PgBouncer]:
    """A pool of two sessions for everybody."""
    if find_binary() is None:
        missing("pgbouncer", "Debian's package of that name")
    with PgBouncer(server_folder / "pgbouncer", postgres=postgres) as server:
        yield server


@pytest.fixture
def url(bouncer: PgBouncer, new_database: Callable[[], str]) -> str:
    """A fresh database behind it."""
    return bouncer.url_of(new_database().rpartition("/")[2])


@pytest.fixture
def apps(url: str) -> Iterator[list[MessagingApp]]:
    """Two processes' worth of the backend."""
    first, second = app_on(url, database_shared_sessions=True), app_on(url, database_shared_sessions=True)
    yield [next(first), next(second)]
    for app in (first, second):
        next(app, None)


def tell(app: MessagingApp, command: CreateBatch | Allocate) -> Answer:
    """Handle a new message as a worker does; return its sender's answer."""
    name = new_id()
    message = Received(name, "allocation.allocate", None, name, False, False, "allocation.commands")
    return handle(app.runtime, message, lambda: command)[0]


def test_commands_of_many_connections_share_two_sessions(url: str, apps: list[MessagingApp]):
    tell(apps[0], CreateBatch("b1", "LAMP", ORDERS))

    with ThreadPoolExecutor(8) as threads:
        orders = [threads.submit(tell, apps[n % 2], Allocate(f"o{n}", "LAMP", 1)) for n in range(ORDERS)]
        answers = [order.result(60) for order in orders]

    assert answers == [Answer("b1")] * ORDERS
    assert ask(apps[0], "SELECT count(*), sum(qty) FROM allocations") == [(ORDERS, ORDERS)]
    assert _limits_of_another_app(url) == ["0", "0"]


def test_every_transaction_has_its_limits(apps: list[MessagingApp]):
    engine = apps[0].runtime.engine
    with engine.begin() as connection:
        assert connection.exec_driver_sql("SHOW lock_timeout").scalar_one() == "6s"
    with Transaction(engine) as transaction:
        assert transaction.read("SHOW lock_timeout") == [("6s",)]
        assert transaction.read("SHOW idle_in_transaction_session_timeout") == [("30s",)]


@pytest.mark.parametrize("redelivered", [False, True], ids=["rate", "redelivered"])
def test_no_attempt_keeps_a_session_while_it_waits_for_another(url: str, redelivered: bool):
    """As many as there are sessions begin at once: each takes a time, or notes that it begins."""

    @handler(rate=None if redelivered else "36000/h")
    def notify(_event: OutOfStock, _uow: object) -> None: ...

    apps = app_on(url, events={OutOfStock: [notify]}, database_shared_sessions=True)
    app = next(apps)
    ids = [put(app, handler="notify", status="pending") for _ in range(12)]
    began = time.monotonic()
    with ThreadPoolExecutor(4) as threads:
        errors = list(threads.map(lambda one: receive(app, one, "notify", redelivered=redelivered), ids))
    seconds = time.monotonic() - began
    states = {state for (state,) in ask(app, "SELECT status FROM deliveries")}
    left = ask(app, "SELECT count(*) FROM open_attempts")
    next(apps, None)

    assert errors == [None] * 12
    assert seconds < 15  # a transaction that is idle is ended after 30
    assert states == ({"done"} if redelivered else {"done", "waiting"})
    assert left == [(0,)]


def test_a_failover_is_over_when_the_pool_follows_the_new_primary(pair: PostgresPair, server_folder: Path):
    if find_binary() is None:
        missing("pgbouncer", "Debian's package of that name")
    with PgBouncer(server_folder / f"pgbouncer-{new_id()}", postgres=pair.primary) as bouncer:
        apps = app_on(
            bouncer.url, database_shared_sessions=True, task_time_limit_s=90, visibility_timeout_s=100
        )
        app = next(apps)
        tell(app, CreateBatch("b1", "LAMP", 10))
        assert tell(app, Allocate("o1", "LAMP", 3)) == Answer("b1")

        pair.primary.kill()
        pair.promote()
        bouncer.follow(pair.primary)

        assert tell(app, Allocate("o2", "LAMP", 3)) == Answer("b1")
        assert ask(app, "SELECT orderid FROM allocations ORDER BY 1") == [("o1",), ("o2",)]
        next(apps, None)


def test_without_the_setting_senders_are_told_to_try_again(url: str):
    """Sessions collide: a statement that one connection has prepared is there for another, too."""
    plain = app_on(url)
    app = next(plain)
    tell(app, CreateBatch("b1", "LAMP", ORDERS))
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda n: tell(app, Allocate(f"o{n}", "LAMP", 1)), range(ORDERS)))
    next(plain, None)

    assert any(isinstance(answer.error, Unavailable) for answer in answers)


def _limits_of_another_app(url: str) -> list[str]:
    """Return what another app's sessions have as limits."""
    connection = psycopg2.connect(url.replace("+psycopg2", "", 1))
    try:
        with connection.cursor() as run:
            run.execute(
                "SELECT setting FROM pg_settings"
                " WHERE name IN ('lock_timeout', 'idle_in_transaction_session_timeout')"
            )
            return [setting for (setting,) in run.fetchall()]
    finally:
        connection.close()
