"""What a worker imported before the fork stays shared by its children, whatever they do."""

from __future__ import annotations

from pathlib import Path

from local.servers.redis_server import Redis
from tests.reliable_celery.celery_fixtures.processes import make_worker, running, sender


def test_a_child_that_collects_garbage_copies_nothing_it_inherited(redis_server: Redis, tmp_path: Path):
    with running(make_worker(redis_server, tmp_path, "sharer", "prefork")):
        grown = sender(redis_server).send_task("fixture.collect_garbage").get(timeout=30)

    assert grown < 3  # MiB
