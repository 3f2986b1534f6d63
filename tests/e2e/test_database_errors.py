"""A sender gets a database error's class, never its text with statements, names and values."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import redis
from celery.exceptions import TimeoutError as NoResultInTime
from sqlalchemy import create_engine, text

from local.processes.child import Child
from local.servers.postgres_server import DATABASE, Postgres
from testing import databases
from tests.e2e.conftest import Backend, Broker, Shop

SKU = "SECRET-LAMP"
COMMANDS: list[tuple[str, list[Any], dict[str, Any]]] = [
    ("create_batch", [], {"ref": "b1", "sku": SKU, "qty": 1, "eta": None}),
    ("allocate", [], {"orderid": "o1", "sku": SKU, "qty": 1}),
    ("change_batch_quantity", [], {"ref": "b1", "qty": 1}),
    ("many", [[["allocation.allocate", {"orderid": "o1", "sku": SKU, "qty": 1}]]], {}),
]
#: What the text of a database error contains.
TELLTALE = ("sqlalche.me", "[SQL", "INSERT INTO", "SELECT FROM", "LINE 1", "LINE 2", "does not exist", SKU)


@pytest.fixture(scope="module")
def broker(broker_of) -> Broker:
    """One kind of broker is enough: it does not matter here."""
    return broker_of("redis")


@pytest.fixture(scope="module", params=["never migrated", "an older schema"])
def worker(request: pytest.FixtureRequest, backend: Backend, postgres: Postgres) -> Iterator[Child]:
    """A worker with an incompatible database."""
    url = databases.copy_database(postgres, "template1" if request.param == "never migrated" else DATABASE)
    backend = replace(backend, env={**backend.env, "ALLOCATION_DATABASE_URL": url})
    if request.param == "an older schema":
        engine = create_engine(url)
        with engine.begin() as connection:
            connection.execute(text("ALTER TABLE products RENAME COLUMN sku TO name"))
        engine.dispose()
    child = backend.worker("commands")
    yield child
    child.stop()


@pytest.mark.parametrize(("task", "args", "fields"), COMMANDS, ids=[command[0] for command in COMMANDS])
def test_a_sender_gets_only_the_class_of_a_database_error(
    worker: Child, broker: Broker, shop: Shop, task: str, args: list[Any], fields: dict[str, Any]
):
    sent = shop.send(task, *args, **fields)
    try:
        answer = repr(sent.get(timeout=60))
    except NoResultInTime:
        raise
    except Exception as error:  # noqa: BLE001  the test examines any error
        answer = f"{type(error).__module__} {error!r}"

    with redis.Redis.from_url(broker.result_backend_url) as results:
        stored = json.dumps(json.loads(results.get(f"celery-task-meta-{sent.id}") or b"null"))
    assert [told for told in TELLTALE if told in answer + stored] == [], answer + stored
    assert "UndefinedTable" in stored or "UndefinedColumn" in stored
