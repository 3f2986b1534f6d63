"""The number to scale workers by counts what waits and what a worker holds."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from kombu import Connection

from allocation.client import AllocationClient
from allocation.domain.commands import CreateBatch
from local import ROOT
from local.servers.redis_server import Redis
from messaging.brokers import topology
from messaging.delivery import new_id


@pytest.fixture
def server(server_folder: Path) -> Iterator[Redis]:
    """A Redis of its own: other tests' messages would be counted."""
    with Redis(server_folder / f"backlog-{new_id()}") as redis:
        yield redis


def test_a_message_counts_until_it_is_settled(server: Redis):
    with AllocationClient(server.url, server.url_of(1)) as client:
        for number in range(3):
            client.delay(CreateBatch(f"b{number}", "LAMP", 1))
    assert _backlog(server) == "3"

    options = topology.transport_options(server.url, 40, 10, "allocation")
    with (
        Connection(server.url, transport=topology.transport(server.url), transport_options=options) as worker,
        worker.channel() as channel,
    ):
        taken = channel.basic_get("allocation.commands")
        assert _backlog(server) == "3"
        taken.ack()
        assert _backlog(server) == "2"


def _backlog(server: Redis) -> str:
    ended = subprocess.run(
        [sys.executable, "-m", "allocation", "backlog"],
        env={**os.environ, "ALLOCATION_BROKER_URL": server.url},
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.strip()
