"""Modules imported before the fork stay shared by a worker's children."""

from __future__ import annotations

from pathlib import Path

from local.servers.redis_server import Redis
from tests.reliable_celery.celery_fixtures.processes import make_worker, running, sender


def test_garbage_collection_in_a_child_copies_no_inherited_memory(redis_server: Redis, tmp_path: Path):
    with running(make_worker(redis_server, tmp_path, "sharer", "prefork")):
        grown = sender(redis_server).send_task("fixture.collect_garbage").get(timeout=30)

    assert grown < 3  # MiB
