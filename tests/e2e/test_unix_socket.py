"""`redis+socket://` for broker and results uses the same transport as `redis://`."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from local.servers.redis_server import find_binary
from local.waiting import eventually
from tests.e2e.conftest import Broker

PASSWORD = "secret"  # of a server that runs throughout this file's tests


@pytest.fixture(scope="module")
def socket_path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A Redis that listens only on a Unix socket."""
    folder = tmp_path_factory.mktemp("socket")
    path = folder / "redis.sock"
    options = {"--port": "0", "--unixsocket": path, "--requirepass": PASSWORD, "--save": "", "--dir": folder}
    command = [str(find_binary()), *(str(part) for option in options.items() for part in option)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        eventually(path.exists, what="the socket")
        yield path
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def broker(socket_path: Path) -> Broker:
    """Messages in database 3, results in database 4."""
    stem = f"redis+socket://:{PASSWORD}@{socket_path}?virtual_host="
    return Broker(f"{stem}3", f"{stem}4")


def test_a_command_over_a_unix_socket_is_answered_by_our_transport(worker, socket_path: Path, shop, sku):
    """The worker's lease shows the transport: kombu's own has none."""
    assert shop.ask("allocate", orderid="o1", sku=sku, qty=1) == f"batch-{sku}"

    with redis.Redis(unix_socket_path=str(socket_path), password=PASSWORD, db=3) as client:
        assert eventually(lambda: client.zcard("allocation.unacked_leases"), 10) == 1
    with redis.Redis(unix_socket_path=str(socket_path), password=PASSWORD, db=4) as client:
        assert client.keys("celery-task-meta-*")


def test_the_password_is_not_logged(worker):
    assert PASSWORD not in worker.log_text()
