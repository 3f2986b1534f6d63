"""Messages for later, which wait in a worker until their time, and clocks that are wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
import redis

from local.redis import Redis
from local.waiting import eventually
from tests.chaos.clock import Clock, can_be_built
from tests.integration.celery_fixtures.processes import (
    CONFIG,
    OUR_CONSUMER,
    make_worker,
    marks,
    running,
    sender,
    unfinished,
)
from tests.programs import missing

VISIBILITY_TIMEOUT_S = 2
MANY = 60  # more than three times what a worker may hold of what is due at once


@pytest.fixture
def compiler() -> None:
    """Skip the test where no clock of its own can be built."""
    if not can_be_built():
        missing("cc", "a C compiler on Linux, such as Debian's package build-essential")


@pytest.mark.parametrize("pool", ["solo", "threads", "prefork"])
def test_a_worker_that_holds_much_for_later_does_what_is_due(
    redis_server: Redis, broker: redis.Redis, tmp_path: Path, pool: str
):
    """As when a mail server is down and many retries wait."""
    app = sender(redis_server)
    with running(make_worker(redis_server, tmp_path, "patient", pool, worker_consumer=OUR_CONSUMER)):
        for number in range(MANY):
            app.send_task("fixture.mark", (number,), countdown=600, ignore_result=True)
        eventually(lambda: broker.hlen("unacked") == MANY, 30, "all that is for later in the worker")

        for _ in range(20):
            assert app.send_task("fixture.add", (1, 2)).get(timeout=10) == 3


@pytest.mark.parametrize("pool", ["solo", "prefork"])
def test_what_waits_longer_than_the_visibility_timeout_is_not_given_to_another(
    redis_server: Redis, broker: redis.Redis, tmp_path: Path, pool: str
):
    """Its worker is alive and knows of it."""
    app = sender(redis_server)
    options = CONFIG["broker_transport_options"] | {"visibility_timeout": VISIBILITY_TIMEOUT_S, "lease_s": 4}
    workers = [
        make_worker(
            redis_server, tmp_path, name, pool, worker_consumer=OUR_CONSUMER, broker_transport_options=options
        )
        for name in ("first", "second")
    ]
    with running(*workers):
        app.send_task("fixture.mark", (1,), countdown=3 * VISIBILITY_TIMEOUT_S + 0.5, ignore_result=True)
        eventually(lambda: marks(redis_server) == {1: 1}, 30, "the mark")
        eventually(lambda: unfinished(redis_server) == 0, 10)
        received = sum(worker.log_text().count("] received") for worker in workers)

    assert received == 1
    assert marks(redis_server) == {1: 1}


def test_a_worker_whose_clock_is_ahead_takes_nothing_from_the_others(
    compiler: None, redis_server: Redis, broker: redis.Redis, tmp_path: Path
):
    """What is overdue is decided by Redis' clock, not by a worker's."""
    app = sender(redis_server)
    clock = Clock(tmp_path)
    clock.jump_to(3600)
    options = CONFIG["broker_transport_options"] | {"visibility_timeout": 60}
    right, ahead = (
        make_worker(redis_server, tmp_path, name, "prefork", broker_transport_options=options)
        for name in ("right", "ahead")
    )
    ahead.env = {**(ahead.env or {}), **clock.environment()}
    with running(right), running(ahead):
        for number in range(4):
            app.send_task("fixture.mark", (number, 1.5), ignore_result=True)
        eventually(lambda: unfinished(redis_server) == 0, 30)

    assert marks(redis_server) == dict.fromkeys(range(4), 1)
