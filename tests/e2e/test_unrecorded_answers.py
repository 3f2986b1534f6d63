"""What the backend answers while its database is away is not recorded; the relay takes it for no answer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
import redis
from sqlalchemy import Engine, create_engine, make_url, text

from allocation.client import Allocate, AllocationClient, outbox
from local.processes import programs
from local.waiting import eventually
from messaging.client.answers import Outcome, Told
from messaging.client.databases import SqlAlchemyDatabase
from messaging.client.pace import Pace
from messaging.client.relay import Relay
from testing.link import Link

FAST = Pace(interval_s=0.05, lease_s=1, answer_after_s=20, pause_max_s=1)


@pytest.fixture(scope="module")
def broker(broker_of):
    """One kind of broker is enough: it does not matter here."""
    return broker_of("redis")


@pytest.fixture
def way(backend) -> Iterator[Link]:
    """The way from the worker to its database."""
    port = make_url(backend.addresses.database_url).port
    assert port is not None
    with Link(port) as link:
        yield link


@pytest.fixture
def worker(backend, way: Link, tmp_path: Path) -> Iterator[None]:
    """A worker that reaches its database that way."""
    url = make_url(backend.addresses.database_url).set(port=way.port)
    env = {**backend.env, "ALLOCATION_DATABASE_URL": url.render_as_string(hide_password=False)}
    child = programs.worker("cut-off", programs.WORK_QUEUES, tmp_path, env, 1)
    child.start()
    backend.wait_for_worker(child)
    yield
    child.stop()


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Engine]:
    """The database of an app."""
    engine = create_engine(f"sqlite:///{tmp_path / 'shop.db'}")
    with engine.begin() as connection:
        outbox.create_table(connection)
    yield engine
    engine.dispose()


@pytest.fixture
def outcomes() -> list[Outcome]:
    """What the app was told."""
    return []


@pytest.fixture
def relay(database: Engine, broker, outcomes: list[Outcome]) -> Iterator[Relay]:
    """A relay of the test's own, driven by it."""
    relay = outbox.relay(
        SqlAlchemyDatabase(database), broker.broker_url, broker.result_backend_url,
        on_answer=lambda outcome, _session: outcomes.append(outcome), pace=FAST,
    )  # fmt: skip
    yield relay
    relay.close()


@pytest.fixture
def client(broker) -> Iterator[AllocationClient]:
    """Looks at results, and sends copies of messages."""
    with AllocationClient(broker.broker_url, broker.result_backend_url) as client:
        yield client


def message_of(database: Engine, key: str) -> str:
    """Return the id of the message that a command is in."""
    with database.connect() as connection:
        query = text("SELECT task_id FROM command_outbox WHERE idempotency_key = :key")
        found: str = connection.execute(query, {"key": key}).scalar_one()
        return found


def answer_to(client: AllocationClient, task_id: str) -> Told:
    """Wait for a message's answer."""
    found: Told = eventually(lambda: client.told([task_id]).get(task_id), 30, "an answer")
    return found


@pytest.mark.usefixtures("worker")
def test_a_refusal_that_was_told_stands_although_the_first_answer_was_not_recorded(
    database, relay, outcomes, way, shop, client, broker, backend
):
    """A copy of the first message comes after the refusal, when the command would be accepted."""
    key, sku = f"order-{uuid4()}", f"LATE-{uuid4()}"
    order = Allocate(key, sku, 1)
    with database.begin() as connection:
        outbox.send(connection, order, key=key)
    way.cut()
    relay.step()
    first = message_of(database, key)
    [line] = answer_to(client, first).lines
    assert line["error"]["type"] == "Unavailable"
    assert line["recorded"] is False
    assert not relay.drain(2)
    assert message_of(database, key) == first
    assert outcomes == []
    # Wait for the last copy: one that is handled while the database comes back could record its absence.
    with pytest.raises(Exception, match="did not answer"):
        shop.ask("allocate", orderid="the last in the queue", sku=sku, qty=1)
    way.mend()

    assert relay.drain(30)
    [outcome] = outcomes
    assert str(outcome.error) == f"Invalid sku {sku}"
    assert message_of(database, key) == first
    shop.ask("create_batch", ref=f"batch-{sku}", sku=sku, qty=10)
    with redis.Redis.from_url(broker.result_backend_url) as results:
        results.flushdb()
    client.send_lines(first, [["allocation.allocate", {"orderid": key, "sku": sku, "qty": 1}, key]])

    [line] = answer_to(client, first).lines
    assert line["error"]["type"] == "InvalidSku"
    assert backend.sql("SELECT count(*) FROM allocations WHERE orderid = :key", key=key) == [(0,)]
