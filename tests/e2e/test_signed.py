"""Signed messages: those signed by known keys are handled, all others are refused and stored."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy import create_engine

from allocation.client import CreateBatch, outbox
from local import ROOT
from local.ports import free_port
from local.processes import programs
from local.processes.child import Child
from local.processes.readiness import workers_answer
from local.settings import LocalSettings
from local.stack import Stack
from local.waiting import eventually
from messaging.delivery import new_id
from tests.e2e.certificates import Pair, make_pair
from tests.refused import log_of_refused

CLIENT = """
import sys
from pathlib import Path
from allocation.client import AllocationClient
from messaging.brokers.signing import Signing

broker, results, key, certificate, store, sku, qty = sys.argv[1:]
signing = Signing(Path(key), Path(certificate), store)
with AllocationClient(broker, results, signing=signing, timeout_s=30) as client:
    try:
        client.create_batch(ref=f"b-{sku}", sku=sku, qty=10)
        print(client.allocate(orderid="o1", sku=sku, qty=int(qty)))
    except Exception as error:
        print(f"{type(error).__name__}: {error}")
"""


@pytest.fixture(scope="module")
def ours(server_folder: Path) -> Pair:
    """The backend's key; its folder of certificates also has the shop's."""
    return make_pair(server_folder / "signing", "backend")


@pytest.fixture(scope="module")
def shop_key(ours: Pair) -> Pair:
    """A key that the backend trusts."""
    return make_pair(ours.key.parent, "shop")


def settings(ours: Pair) -> dict[str, str]:
    """Return the settings of a backend that signs, and trusts the certificates in its folder."""
    return {
        "ALLOCATION_SIGNING_KEY": str(ours.key),
        "ALLOCATION_SIGNING_CERTIFICATE": str(ours.certificate),
        "ALLOCATION_SIGNING_STORE": str(ours.key.parent / "*.pem"),
    }


@pytest.fixture(scope="module")
def signing_worker(backend, ours: Pair, shop_key: Pair) -> Iterator[Child]:
    """A worker that accepts only signed messages; an unsigned ping gets no answer."""
    backend.env |= settings(ours)
    child = programs.commands_worker(backend.folder, backend.env, 2)
    child.start()
    eventually(lambda: " ready." in child.log_text(), 60, "the worker's start")
    yield child
    child.stop()


def send_signed(broker, pair: Pair, store: Pair, sku: str, qty: int = 10) -> str:
    """Send from another process, since a process signs with one key; return the outcome."""
    command = [
        sys.executable, "-c", CLIENT, broker.broker_url, broker.result_backend_url,
        str(pair.key), str(pair.certificate), str(store.key.parent / "*.pem"), sku, str(qty),
    ]  # fmt: skip
    return run(*command)


def run(*command: str, env: Mapping[str, str] | None = None) -> str:
    """Run a program in its own process; return its output."""
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **(env or {})}, capture_output=True, text=True, timeout=90,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


@pytest.fixture
def sku() -> str:
    """The name of the test's own product."""
    return f"LAMP-{uuid4()}"


def batches(backend, sku: str) -> int:
    """Return a product's number of batches."""
    return backend.sql("SELECT count(*) FROM batches WHERE sku = :sku", sku=sku)[0][0]


def refused_letters(backend) -> list[str]:
    """Return the errors of refused messages."""
    return [error for (error,) in backend.sql("SELECT error FROM dead_letters ORDER BY at")]


def test_a_relay_signs_what_an_app_has_committed(
    signing_worker, backend, broker, ours, shop_key, sku, tmp_path
):
    database = create_engine(f"sqlite:///{tmp_path / 'shop.db'}")
    with database.begin() as connection:
        outbox.create_table(connection)
        outbox.send(connection, CreateBatch(f"b-{sku}", sku, 10), key=sku)

    run(
        sys.executable, "-m", "allocation.client", "relay", "--once", "--keep-answers",
        "--database-url", str(database.url),
        "--broker-url", broker.broker_url, "--results-url", broker.result_backend_url,
        "--signing-key", str(shop_key.key), "--signing-certificate", str(shop_key.certificate),
        "--signing-store", str(ours.key.parent / "*.pem"),
    )  # fmt: skip

    assert batches(backend, sku) == 1
    with database.connect() as connection:
        outcome = outbox.outcome(connection, sku)
    assert outcome is not None
    assert (outcome.result, outcome.error) == (None, None)
    database.dispose()


def test_a_message_signed_by_a_known_key_is_carried_out(signing_worker, broker, ours, shop_key, sku):
    assert send_signed(broker, shop_key, ours, sku) == f"b-{sku}"


def test_a_message_without_a_signature_is_refused(signing_worker, backend, shop, sku):
    with pytest.raises(Exception, match="Refusing to deserialize"):
        shop.ask("create_batch", ref=f"b-{sku}", sku=sku, qty=10)

    assert batches(backend, sku) == 0
    assert "Refusing to deserialize" in refused_letters(backend)[-1]


def test_a_message_signed_by_a_stranger_is_refused(signing_worker, backend, broker, server_folder, sku):
    stranger = make_pair(server_folder / "stranger", "stranger")

    answer = send_signed(broker, stranger, stranger, sku)

    assert answer.startswith("InvalidMessage: body cannot be read: Unable to deserialize")
    assert batches(backend, sku) == 0


def test_a_control_command_without_a_signature_has_no_effect(signing_worker, broker):
    assert not workers_answer(broker.broker_url, "commands")
    assert signing_worker.running


def test_make_up_is_ready_though_its_workers_answer_no_unsigned_ping(
    ours, new_database, redis_server, server_folder, monkeypatch
):
    for name, value in settings(ours).items():
        monkeypatch.setenv(name, value)
    up = LocalSettings(
        _env_file=None,
        database_url=new_database(),
        broker_url=redis_server.url_of(7),
        result_backend_url=redis_server.url_of(8),
        flower_port=free_port(),
        smtp_port=free_port(),
        data_dir=Path(tempfile.mkdtemp(prefix="signed-", dir=server_folder)),
    )

    with Stack(up, without={"beat", "flower", "mail"}) as stack:
        assert not workers_answer(up.broker_url, "commands")
        assert stack.commands.running


def test_an_event_reaches_its_handler_by_a_signed_message(
    signing_worker, backend, broker, ours, shop_key, sku
):
    assert send_signed(broker, shop_key, ours, sku, qty=11) == "None"

    statuses = "SELECT status FROM deliveries WHERE payload->>'sku' = :sku"
    eventually(lambda: backend.sql(statuses, sku=sku) == [("done",)], what="the out-of-stock mail")


def test_a_worker_does_not_start_with_an_expired_certificate_in_its_store(backend, server_folder):
    folder = server_folder / "expired"
    ours = make_pair(folder, "backend")
    make_pair(folder, "shop", valid=-timedelta(minutes=1))
    child = programs.commands_worker(backend.folder, backend.env | settings(ours), 1)

    assert "Expired certificate" in log_of_refused(child)


PARKED = """
INSERT INTO dead_letters
    (id, reason, error, queue, task, content_type, content_encoding, headers, properties, body)
VALUES (:id, 'killed its worker', 'Parked', 'allocation.commands', 'allocation.allocate', 'application/json',
        'utf-8', :headers, '{}', convert_to(:body, 'UTF8')) RETURNING 1"""


def test_a_parked_command_is_carried_out_when_it_is_replayed(
    signing_worker, backend, broker, ours, shop_key, sku
):
    """A worker that had verified the signature wrote its letter; the replay is signed again."""
    assert send_signed(broker, shop_key, ours, sku) == f"b-{sku}"
    letter_id, headers = new_id(), {"task": "allocation.allocate", "id": f"again-{sku}", "lang": "py"}
    body = [[], {"orderid": "parked", "sku": sku, "qty": 1}, {}]
    backend.sql(PARKED, id=letter_id, headers=json.dumps(headers), body=json.dumps(body))

    run(sys.executable, "-m", "allocation", "dead-letters", "replay", letter_id, env=backend.env)

    answer = "SELECT command FROM inbox WHERE task_id = :id AND error IS NULL"
    [(command,)] = eventually(lambda: backend.sql(answer, id=f"again-{sku}"), 30, "its answer")
    assert "orderid='parked'" in command
