"""No password is shown in logs, tools, settings, errors or Flower."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from celery.utils.nodenames import gethostname

from allocation.client import AllocationClient
from allocation.config import Settings
from local import ROOT
from local.addresses import Addresses
from local.ports import LOOPBACK, free_port
from local.processes import programs
from local.processes.readiness import flower_answers
from local.servers.redis_server import Redis
from local.waiting import eventually
from messaging.errors import Unavailable
from tests.e2e.conftest import Backend, Broker
from tests.e2e.web import request

SECRET = "s3cr3t"
LOGIN = "operator:look"


@pytest.fixture(scope="module")
def broker(server_folder: Path) -> Iterator[Broker]:
    """A Redis with a password."""
    with Redis(server_folder / "with-password") as server:
        with redis.Redis.from_url(server.url) as client:
            client.config_set("requirepass", SECRET)
        address = f"redis://:{SECRET}@{LOOPBACK}:{server.port}"
        yield Broker(f"{address}/0", f"{address}/1")


@pytest.fixture(scope="module")
def secretive(backend: Backend) -> Backend:
    """A backend with a password in every address."""
    before, at, after = backend.addresses.database_url.rpartition("@")
    addresses = Addresses(
        database_url=f"{before}:{SECRET}{at}{after}",
        broker_url=backend.addresses.broker_url,
        result_backend_url=backend.addresses.result_backend_url,
        smtp_url=backend.addresses.smtp_url,
        flower_url="",
    )
    return Backend(addresses, {**backend.env, **addresses.environment()}, backend.folder)


@pytest.mark.timeout(240)
def test_neither_workers_nor_flower_nor_tools_show_a_password(secretive: Backend):
    worker, port = secretive.worker("commands"), free_port()
    flower = programs.flower(secretive.folder, {**secretive.env, "FLOWER_BASIC_AUTH": LOGIN}, port)
    flower.start()
    try:
        eventually(lambda: flower_answers(port), 60, "an answer from Flower")
        name = f"commands@{gethostname()}"
        url = f"http://{LOOPBACK}:{port}"
        eventually(lambda: name in request(f"{url}/api/workers?refresh=1", LOGIN).text, 60, "the worker")
        pages = [
            "/",
            f"/worker/{name}",
            "/broker",
            "/tasks",
            "/deliveries",
            "/api/workers",
            "/metrics",
            "/none",
        ]
        shown = {page: request(f"{url}{page}", LOGIN).text for page in pages}
        for tool in ("check", "deliveries list", "deliveries stats", "dead-letters list", "--help"):
            done = run_tool(secretive, *tool.split())
            shown[tool] = done.stdout + done.stderr
    finally:
        flower.stop()
        worker.stop()

    shown |= {"worker's log": worker.log_text(), "Flower's log": flower.log_text()}
    assert "redis://:**@" in shown["worker's log"]
    assert "result_backend" in shown[f"/worker/{name}"]
    assert [where for where, text in shown.items() if SECRET in text] == []


def run_tool(backend: Backend, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the operator's tool."""
    command = [sys.executable, "-m", "allocation", *arguments]
    env = {**os.environ, **backend.env}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=60, check=False)


def test_settings_hide_passwords_in_their_repr():
    addresses = {
        "database_url": f"postgresql+psycopg2://u:{SECRET}@h/d",
        "broker_url": f"redis://:{SECRET}@h/0",
        "result_backend_url": f"redis://:{SECRET}@h/1",
        "smtp_url": f"smtp://u:{SECRET}@h",
        "signing_key": "key.pem",
        "signing_certificate": "certificate.pem",
        "signing_store": "*.pem",
        "signing_key_password": SECRET,
    }

    assert SECRET not in repr(Settings(**addresses)) + str(Settings(**addresses))


@pytest.mark.parametrize("kind", ["redis", "amqp"])
def test_an_error_of_the_client_holds_no_address(kind: str):
    nowhere = f"{kind}://u:{SECRET}@{LOOPBACK}:{free_port()}/"
    results = f"redis://:{SECRET}@{LOOPBACK}:{free_port()}/1"

    with AllocationClient(nowhere, results) as client, pytest.raises(Unavailable) as caught:
        client.allocate(orderid="o1", sku="LAMP", qty=1)

    shown = f"{caught.value!r} {caught.value} {client!r}"
    assert SECRET not in shown
    assert LOOPBACK not in shown
