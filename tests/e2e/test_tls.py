"""Redis and PostgreSQL over TLS: everything works with the right authority, nothing with another."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from allocation.client import AllocationClient
from local import ROOT
from local.processes import programs
from local.waiting import eventually
from messaging.errors import Unavailable
from tests.e2e.certificates import Pair, make_pair
from tests.e2e.tls_front import TlsFront


@dataclass(frozen=True)
class Encrypted:
    """The servers' addresses behind TLS, and their certificate authority."""

    redis: TlsFront
    postgres: TlsFront
    pair: Pair
    plain_database_url: str

    def redis_url(self, database: int) -> str:
        return f"rediss://127.0.0.1:{self.redis.port}/{database}"

    def settings(self, authority: Path) -> dict[str, str]:
        """Return the settings of a backend that trusts this authority."""
        before, _, after = self.plain_database_url.rpartition("@")
        database = after.rpartition("/")[2]
        return {
            "ALLOCATION_BROKER_URL": self.redis_url(0),
            "ALLOCATION_RESULT_BACKEND_URL": self.redis_url(1),
            "ALLOCATION_TLS_CA_FILE": str(authority),
            "ALLOCATION_DATABASE_URL": f"{before}@127.0.0.1:{self.postgres.port}/{database}"
            f"?sslmode=verify-full&sslrootcert={authority}",
        }


@pytest.fixture(scope="module")
def broker(broker_of):
    """Redis only; RabbitMQ has its own TLS, which test_rabbitmq tests."""
    return broker_of("redis")


@pytest.fixture(scope="module")
def encrypted(backend, server_folder: Path) -> Iterator[Encrypted]:
    """The backend's servers behind TLS."""
    pair = make_pair(Path(tempfile.mkdtemp(prefix="tls-", dir=server_folder)), "servers")
    url = backend.addresses.database_url
    with TlsFront(backend.addresses.broker_url, pair) as redis, TlsFront(url, pair) as postgres:
        yield Encrypted(redis, postgres, pair, url)


@pytest.fixture(scope="module")
def stranger(server_folder: Path) -> Path:
    """An authority that signed neither server's certificate."""
    return make_pair(Path(tempfile.mkdtemp(prefix="stranger-", dir=server_folder)), "stranger").certificate


def operator(encrypted: Encrypted, authority: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the operator's tool with these servers."""
    env = os.environ | encrypted.settings(authority)
    command = [sys.executable, "-m", "allocation", *arguments]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=90, check=False)


def test_commands_and_the_operators_tool_work_over_tls(backend, encrypted, module_mail):
    """Sender, worker, results, database, and the event's handler."""
    env = backend.env | encrypted.settings(encrypted.pair.certificate)
    child = programs.worker("tls", programs.WORK_QUEUES, backend.folder, env, 2)
    child.start()
    try:
        with AllocationClient(
            encrypted.redis_url(0), encrypted.redis_url(1), ca_file=encrypted.pair.certificate, timeout_s=60
        ) as client:
            client.create_batch(ref="b1", sku="LAMP", qty=1)
            assert client.allocate(orderid="o1", sku="LAMP", qty=1) == "b1"
            assert client.allocate(orderid="o2", sku="LAMP", qty=1) is None
        eventually(lambda: len(module_mail.mails) == 1, what="the mail")
    finally:
        child.stop()

    listed = operator(encrypted, encrypted.pair.certificate, "deliveries", "list", "--status", "done")

    assert "send_out_of_stock_notification" in listed.stdout, listed.stderr
    assert encrypted.redis.served > 0
    assert encrypted.postgres.served > 0


def test_a_sender_refuses_a_redis_with_an_untrusted_certificate(encrypted, stranger):
    """It fails within seconds, without naming an address."""
    with (
        AllocationClient(
            encrypted.redis_url(0), encrypted.redis_url(1), ca_file=stranger, timeout_s=5
        ) as client,
        pytest.raises(Unavailable) as refused,
    ):
        client.allocate(orderid="o3", sku="LAMP", qty=1)

    assert str(encrypted.redis.port) not in str(refused.value)


def test_check_names_the_servers_with_untrusted_certificates(encrypted, stranger):
    """Both servers are refused, with the reason."""
    checked = operator(encrypted, stranger, "check")

    assert checked.returncode != 0
    assert checked.stdout.lower().count("certificate verify failed") >= 2, checked.stdout


def test_a_worker_that_does_not_trust_the_broker_takes_no_message_and_says_why(backend, encrypted, stranger):
    """It keeps trying, as with an unavailable broker."""
    child = programs.worker(
        "untrusting", programs.WORK_QUEUES, backend.folder, backend.env | encrypted.settings(stranger), 1
    )
    child.start()
    try:
        eventually(lambda: "certificate verify failed" in child.log_text(), 60, "the reason in the log")
        assert " ready." not in child.log_text()
    finally:
        child.kill()
