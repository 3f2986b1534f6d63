"""A command that an app sends inside its own transaction: sent if that commits, answered in another one."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import Engine, create_engine, text

from allocation.client import Allocate, outbox
from allocation.domain.errors import InvalidSku
from local.child import Child
from local.waiting import eventually
from messaging.client.client import Outcome
from messaging.client.databases import SqlAlchemyDatabase
from messaging.client.pace import Pace
from messaging.client.relay import Relay
from messaging.errors import InvalidMessage

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
