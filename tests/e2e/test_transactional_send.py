"""A command that an app sends inside its own transaction: sent if that commits, answered in another one."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any
from uuid import uuid4

import psycopg2
import pytest
import redis
from sqlalchemy import Engine, create_engine, text

from allocation.client import Allocate, outbox
from allocation.domain.errors import InvalidSku
from local.processes import programs
from local.processes.child import Child
from local.waiting import eventually
from messaging.client.answers import Outcome
from messaging.client.databases import SqlAlchemyDatabase
from messaging.client.pace import Pace
from messaging.client.relay import Relay
from messaging.errors import InvalidMessage
from tests.unread import unread

pytestmark = pytest.mark.usefixtures("worker")

FAST = Pace(interval_s=0.05, lease_s=1, answer_after_s=2, pause_max_s=0.5)


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Engine]:
    """The database of an app, with a table of what it was told."""
    engine = create_engine(f"sqlite:///{tmp_path / 'shop.db'}")
    with engine.begin() as connection:
        outbox.create_table(connection)
        connection.execute(text("CREATE TABLE told (key TEXT, answer TEXT)"))
    yield engine
    engine.dispose()


def note(outcome: Outcome, session: Any) -> None:
    """Write down what a command came to, as an app does."""
    answer = str(outcome.error or outcome.result)
    session.execute(text("INSERT INTO told VALUES (:key, :answer)"), {"key": outcome.key, "answer": answer})


def told(database: Engine) -> list[tuple[str, str]]:
    """Return what was written down, in that order."""
    with database.connect() as connection:
        return [tuple(row) for row in connection.execute(text("SELECT key, answer FROM told ORDER BY rowid"))]


@pytest.fixture
def relay(database: Engine, broker) -> Iterator[Relay]:
    """A relay of the test's own, driven by it."""
    relay = outbox.relay(
        SqlAlchemyDatabase(database), broker.broker_url, broker.result_backend_url, on_answer=note, pace=FAST
    )
    yield relay
    relay.close()


def new_key() -> str:
    return f"order-{uuid4()}"


def test_a_committed_command_is_carried_out_and_its_answer_noted(database, relay, sku):
    key = new_key()
    with database.begin() as connection:
        outbox.send(connection, Allocate(key, sku, 1), key=key)

    assert relay.drain(30)

    assert told(database) == [(key, f"batch-{sku}")]


def test_a_rolled_back_command_is_never_sent(database, relay, sku, backend):
    key = new_key()
    with database.connect() as connection:
        outbox.send(connection, Allocate(key, sku, 1), key=key)
        connection.rollback()

    assert relay.drain(30)

    assert told(database) == []
    assert backend.sql("SELECT count(*) FROM inbox WHERE idempotency_key = :key", key=key) == [(0,)]


def test_refusals_arrive_as_the_projects_own_errors(database, broker, sku):
    outcomes: list[Outcome] = []
    with database.begin() as connection:
        for key, name, qty in (("a", "NO-SUCH", 1), ("b", sku, 0), ("c", sku, 2)):
            outbox.send(connection, Allocate(f"{sku}-{key}", name, qty), key=f"{sku}-{key}")
    relay = outbox.relay(
        SqlAlchemyDatabase(database), broker.broker_url, broker.result_backend_url,
        on_answer=lambda outcome, _session: outcomes.append(outcome), pace=FAST,
    )  # fmt: skip

    assert relay.drain(30)

    unknown, invalid, sold_out = sorted(outcomes, key=lambda outcome: outcome.key)
    assert isinstance(unknown.error, InvalidSku)
    assert str(unknown.error) == "Invalid sku NO-SUCH"
    assert isinstance(invalid.error, InvalidMessage)
    assert invalid.error.field == "qty"
    assert (sold_out.result, sold_out.error) == (None, None)
    assert sold_out.command == Allocate(f"{sku}-c", sku, 2)


def test_the_command_line_relays_until_sigterm(database, broker, sku, tmp_path):
    keys = [new_key() for _ in range(250)]
    with database.begin() as connection:
        for key in keys:
            outbox.send(connection, Allocate(key, sku, 1), key=key)
    child = Child(
        "relay",
        [
            sys.executable, "-m", "allocation.client", "relay", "--database-url", str(database.url),
            "--broker-url", broker.broker_url, "--results-url", broker.result_backend_url,
            "--on-answer", "tests.e2e.test_transactional_send:note",
        ],
        log=tmp_path / "relay.log",
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    child.start()

    eventually(lambda: len(told(database)) == len(keys), 60, f"all answers: {child.log}")

    began = time.monotonic()
    os.kill(child.pid, signal.SIGTERM)
    eventually(lambda: not child.running, 10, "the end of the relay")
    assert time.monotonic() - began < 5
    assert child.exit_code == 0, child.log_tail()
    assert sorted(key for key, _ in told(database)) == sorted(keys)
    assert [answer for _, answer in told(database)].count(f"batch-{sku}") == 1


@pytest.fixture
def results_forgotten(broker) -> Any:
    """A function that has Redis forget every result, as it does when they expire."""

    def forget() -> None:
        with redis.Redis.from_url(broker.result_backend_url) as client:
            client.flushdb()

    return forget


def carried_out(backend, key: str) -> bool:
    """Tell whether the backend has answered a command."""
    return bool(backend.sql("SELECT 1 FROM inbox WHERE idempotency_key = :key", key=key))


def send_once(relay: Relay, backend, key: str) -> None:
    """Have a relay send a command without collecting its answer."""
    assert relay.step()
    eventually(lambda: carried_out(backend, key), what="the backend's answer")


def test_an_answer_that_was_lost_is_asked_for_again(database, relay, sku, backend, results_forgotten):
    key = new_key()
    with database.begin() as connection:
        outbox.send(connection, Allocate(key, sku, 1), key=key)
    send_once(relay, backend, key)
    results_forgotten()

    assert relay.drain(30)

    assert told(database) == [(key, f"batch-{sku}")]
    assert backend.sql("SELECT count(*) FROM allocations WHERE orderid = :key", key=key) == [(1,)]


def test_a_refusal_stands_although_its_answer_was_lost(database, relay, shop, backend, results_forgotten):
    """The message that is sent again is the same one, so it is not tried anew."""
    key, sku = new_key(), f"LATE-{uuid4()}"
    with database.begin() as connection:
        outbox.send(connection, Allocate(key, sku, 1), key=key)
    send_once(relay, backend, key)
    results_forgotten()
    shop.ask("create_batch", ref=f"batch-{sku}", sku=sku, qty=10)

    assert relay.drain(30)

    assert told(database) == [(key, f"Invalid sku {sku}")]
    assert backend.sql("SELECT count(*) FROM allocations WHERE orderid = :key", key=key) == [(0,)]


def test_a_backend_that_is_not_available_is_no_refusal(database, relay, sku, backend):
    key = new_key()
    with database.begin() as connection:
        outbox.send(connection, Allocate(key, sku, 1), key=key)
    url = backend.addresses.database_url.replace("+psycopg2", "")
    with closing(psycopg2.connect(url)) as blocker:
        blocker.cursor().execute("SELECT 1 FROM products WHERE sku = %s FOR UPDATE", (sku,))
        relay.step()
        eventually(lambda: carried_out(backend, key), what="the end of the backend's patience")
        blocker.rollback()

    assert relay.drain(30)

    assert told(database) == [(key, f"batch-{sku}")]


def test_a_handler_that_fails_is_called_again_and_keeps_nobody_waiting(database, broker, sku):
    keys = [new_key() for _ in range(5)]
    with database.begin() as connection:
        for key in keys:
            outbox.send(connection, Allocate(key, sku, 1), key=key)
    failures = Counter[str]()

    def fail_at_first(outcome: Outcome, session: Any) -> None:
        note(outcome, session)
        if outcome.key == keys[1] and failures[outcome.key] < 3:
            failures[outcome.key] += 1
            raise RuntimeError("the shop is not itself")

    relay = outbox.relay(
        SqlAlchemyDatabase(database), broker.broker_url, broker.result_backend_url,
        on_answer=fail_at_first, pace=FAST,
    )  # fmt: skip

    assert relay.drain(30)

    noted = [key for key, _ in told(database)]
    assert sorted(noted) == sorted(keys)
    assert noted[-1] == keys[1]
    assert failures[keys[1]] == 3


def test_a_group_is_carried_out_in_order(database, relay, sku, backend):
    keys = [new_key() for _ in range(6)]
    with database.begin() as connection:
        for key in keys:
            outbox.send(connection, Allocate(key, sku, 1), key=key, group="customer-1")

    assert relay.drain(60)

    assert [key for key, _ in told(database)] == keys
    assert told(database)[0] == (keys[0], f"batch-{sku}")


def test_any_number_of_relays_note_each_answer_once(new_database, broker, sku):
    engine = create_engine(new_database())
    with engine.begin() as connection:
        outbox.create_table(connection)
        connection.execute(text("CREATE TABLE told (key TEXT, answer TEXT)"))
        for number in range(200):
            key = f"{sku}-{number}"
            outbox.send(connection, Allocate(key, sku, 1), key=key)
    relays = [
        outbox.relay(
            SqlAlchemyDatabase(str(engine.url)), broker.broker_url, broker.result_backend_url,
            on_answer=note, pace=replace(FAST, size=10),
        )
        for _ in range(3)
    ]  # fmt: skip
    threads = [Thread(target=relay.drain, args=(60,)) for relay in relays]

    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    with engine.connect() as connection:
        noted = Counter(connection.execute(text("SELECT key FROM told")).scalars())
    assert noted == Counter(f"{sku}-{number}" for number in range(200))
    engine.dispose()


def test_a_backend_that_takes_fewer_commands_at_once_gets_fewer(
    database, relay, backend, worker, sku, tmp_path
):
    worker.stop()
    small = programs.worker(
        "small", programs.WORK_QUEUES, tmp_path, {**backend.env, "ALLOCATION_BULK_MAX": "3"}, 1
    )
    small.start()
    keys = [new_key() for _ in range(10)]
    try:
        backend.wait_for_worker(small)
        with database.begin() as connection:
            for key in keys:
                outbox.send(connection, Allocate(key, sku, 1), key=key)

        assert relay.drain(60)
    finally:
        small.stop()
        worker.start()
        backend.wait_for_worker(worker)

    assert sorted(key for key, _ in told(database)) == sorted(keys)
    assert {answer for _, answer in told(database)} == {f"batch-{sku}", "None"}


def test_a_relay_can_be_drained_again_and_again(database, relay, sku):
    """As a periodic job does."""
    for number in range(3):
        key = f"{sku}-{number}"
        with database.begin() as connection:
            outbox.send(connection, Allocate(key, sku, 1), key=key)

        assert relay.drain(30)
        assert len(told(database)) == number + 1


def test_a_relay_reads_all_that_it_is_told(database, broker, sku):
    """It never waits for an answer; what it left unread would fill its connections in the end."""
    relay = outbox.relay(
        SqlAlchemyDatabase(database), broker.broker_url, broker.result_backend_url,
        on_answer=note, pace=replace(FAST, size=1),
    )  # fmt: skip
    with database.begin() as connection:
        for number in range(100):
            outbox.send(connection, Allocate(f"{sku}-{number}", sku, 1), key=f"{sku}-{number}")
    before = unread()

    while relay.waiting().count:
        relay.step()
    after = unread()

    relay.close()
    assert after - before < 1000
