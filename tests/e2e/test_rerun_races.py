"""Relays, schedulers and operators compete for failed deliveries; each handler takes effect exactly once."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
import redis

from local import ROOT
from local.processes import programs
from local.servers.redis_server import Redis
from local.waiting import eventually
from tests.e2e.conftest import Backend, Broker

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

DELIVERIES = 5000

#: Each order line was deallocated, and the handler that reallocates it failed. A second run of one delivery
#: would show: a trigger in the handler's transaction adds a line to `effects`.
FAILED = """
WITH product AS (
    INSERT INTO products (sku) SELECT 'SKU-' || n FROM generate_series(1, 50) n RETURNING 1
), batch AS (
    INSERT INTO batches (reference, sku, purchased_quantity)
    SELECT 'batch-' || n, 'SKU-' || n, 1000000 FROM generate_series(1, 50) n RETURNING 1
), delivery AS (
    INSERT INTO deliveries (id, event_id, event_type, payload, handler, status, attempts, due_at, grace_s,
                            correlation_id, causation_id, created_at, finished_at, last_error)
    SELECT gen_random_uuid(), gen_random_uuid(), 'Deallocated',
           jsonb_build_object('orderid', 'o' || n, 'sku', 'SKU-' || (n % 50 + 1), 'qty', 1), 'reallocate',
           'failed', 3, now(), 1, 'c' || n, 'c' || n, now() - interval '1 hour', now() - interval '1 hour',
           'OperationalError: an outage'
    FROM generate_series(1, :count) n RETURNING 1
)
SELECT (SELECT count(*) FROM product), (SELECT count(*) FROM batch), (SELECT count(*) FROM delivery)"""

#: Each change of a delivery to done adds a line here; nothing else writes to it.
COUNT_EFFECTS = """
CREATE TABLE effects (delivery_id uuid NOT NULL, orderid text NOT NULL);
CREATE FUNCTION note_effect() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO effects VALUES (new.id, new.payload->>'orderid'); RETURN NULL; END $$;
CREATE TRIGGER note_effect AFTER UPDATE ON deliveries FOR EACH ROW WHEN (new.status = 'done')
    EXECUTE FUNCTION note_effect();
SELECT 1"""

RELAY_AGE = "SELECT extract(epoch FROM now() - at) FROM heartbeats WHERE job = 'relay'"
STATES = "SELECT status, count(*) FROM deliveries GROUP BY 1"


@pytest.fixture(scope="module")
def broker(redis_server: Redis) -> Broker:
    """One kind of broker is enough: it does not matter here."""
    with redis.Redis.from_url(redis_server.url) as client:
        client.flushall()
    return Broker(redis_server.url_of(0), redis_server.url_of(1))


@pytest.fixture
def eager(backend: Backend) -> dict[str, str]:
    """Relay and schedule run every second, and the schedule may take hundreds."""
    return {
        **backend.env,
        "ALLOCATION_RELAY_INTERVAL_S": "1",
        "ALLOCATION_RELAY_GRACE_S": "1",
        "ALLOCATION_RERUN_INTERVAL_S": "1",
        "ALLOCATION_RERUN_COOLDOWN_S": "1",
        "ALLOCATION_RERUN_BATCH": "300",
    }


@pytest.fixture
def crowd(backend: Backend, eager: dict[str, str]) -> Iterator[None]:
    """A worker with three processes, three housekeeping workers, and two beats."""
    with ExitStack() as stack:
        stack.callback(backend.worker("commands", concurrency=3).stop)
        for number in range(3):
            name = f"housekeeping{number}"
            child = programs.worker(name, programs.HOUSEKEEPING_QUEUE, backend.folder, eager, 1)
            child.start()
            stack.callback(child.stop)
        for number in range(2):
            (backend.folder / f"beat{number}").mkdir()
            child = programs.beat(backend.folder / f"beat{number}", eager)
            child.start()
            stack.callback(child.stop)
        eventually(lambda: backend.sql(RELAY_AGE), 60, "the relay's first run")
        yield


def rerun_all(env: dict[str, str]) -> subprocess.Popen[str]:
    """Start an operator who re-runs everything that failed in an outage."""
    arguments = ["deliveries", "rerun", "--error", "outage", "--limit", str(DELIVERIES)]
    return subprocess.Popen(
        [sys.executable, "-m", "allocation", *arguments],
        env={**os.environ, **env}, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def test_relays_schedulers_and_operators_at_once_have_each_effect_exactly_once(
    backend: Backend, eager: dict[str, str], crowd: None
):
    backend.sql(COUNT_EFFECTS)
    assert backend.sql(FAILED, count=DELIVERIES) == [(50, 50, DELIVERIES)]

    with rerun_all(eager) as first, rerun_all(eager) as second:
        said = [operator.communicate(timeout=240)[0] for operator in (first, second)]
        assert (first.returncode, second.returncode) == (0, 0), said

    [(relay_age_s,)] = backend.sql(RELAY_AGE)
    assert relay_age_s < 30  # housekeeping continues although the queues are full
    eventually(lambda: backend.sql(STATES) == [("done", DELIVERIES)], 400, "every delivery done", every=1)
    assert backend.sql("SELECT count(*), count(DISTINCT delivery_id) FROM effects") == [
        (DELIVERIES, DELIVERIES)
    ]
    assert backend.sql("SELECT count(*), count(DISTINCT orderid) FROM allocations") == [
        (DELIVERIES, DELIVERIES)
    ]
    assert backend.sql("SELECT sum(allocated_quantity) FROM batches") == [(DELIVERIES,)]
    assert backend.sql("SELECT count(*) FROM actions WHERE action = 'rerun'") == [(DELIVERIES,)]
