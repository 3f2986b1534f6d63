"""Every example sender runs as its first line says, with a real worker."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from local import ROOT
from local.ports import free_port
from local.processes.child import Child
from local.waiting import eventually
from tests.programs import missing

SENDERS = ROOT / "examples" / "senders"
#: The arguments of an example's relay, where that is a process of its own.
RELAYS = {"django_app.py": ["relay_commands"]}

pytestmark = pytest.mark.usefixtures("worker")


@pytest.fixture
def environment(broker, tmp_path: Path) -> dict[str, str]:
    """The addresses of the servers and of the examples' own databases."""
    addresses = {
        "BROKER_URL": broker.broker_url,
        "RESULTS_URL": broker.result_backend_url,
        "DATABASE_URL": f"sqlite:///{tmp_path / 'shop.db'}",
        "DATABASE_FILE": str(tmp_path / "shop.db"),
        "CRASHES": "1",
    }
    return {**os.environ, **addresses, "PYTHONPATH": str(ROOT)}


@pytest.fixture
def sku(shop) -> str:
    """The test's own product, with ten pieces on the shelf."""
    sku = f"LAMP-{uuid4()}"
    shop.ask("create_batch", ref=f"b-{sku}", sku=sku, qty=10)
    return sku


def run(*command: str, env: dict[str, str]) -> str:
    """Run a program to its end and return its output."""
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_plain_celery(environment):
    assert run(sys.executable, str(SENDERS / "plain.py"), env=environment) == "plain-batch"


def test_plain_celery_gives_up_after_seconds_without_an_answer(nowhere):
    done = subprocess.run(
        [sys.executable, str(SENDERS / "plain.py")],
        env=nowhere, capture_output=True, text=True, timeout=15, check=False,
    )  # fmt: skip

    assert done.returncode == 1
    assert done.stderr.startswith("The broker or the result backend does not answer")
    assert done.stderr.count("\n") == 1


@pytest.fixture
def nowhere(environment, free_port) -> dict[str, str]:
    """An environment with wrong ports."""
    address = f"redis://127.0.0.1:{free_port}"
    return {**environment, "BROKER_URL": f"{address}/0", "RESULTS_URL": f"{address}/1"}


def test_messages_made_by_hand(environment):
    assert run(sys.executable, str(SENDERS / "kombu_by_hand.py"), env=environment) == "hand-batch"


@pytest.fixture
def web_app(environment, tmp_path: Path) -> Iterator[Callable[..., str]]:
    """A function that starts an example and returns its address."""
    children: list[Child] = []

    def serve(name: str, environment: dict[str, str] = environment) -> str:
        port = free_port()
        env = {**environment, "PORT": str(port)}
        command = [sys.executable, str(SENDERS / name)]
        child = Child(name, command, log=tmp_path / f"{name}.log", env=env)
        child.start()
        children.append(child)
        url = f"http://127.0.0.1:{port}"
        eventually(lambda: call(f"{url}/none")[0] == 404, 60, f"an answer from {name}: {child.log}")
        if name in RELAYS:
            relay = Child("relay", [*command, *RELAYS[name]], log=tmp_path / "relay.log", env=env)
            relay.start()
            children.append(relay)
        return url

    yield serve
    for child in children:
        child.stop()


def call(url: str, body: dict[str, Any] | None = None) -> tuple[int, Any]:
    """Send a request to a web app; return status and JSON."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})  # noqa: S310  http
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310  http
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as refusal:
        with refusal:
            text = refusal.read().decode()
        return refusal.code, json.loads(text) if text.startswith("{") else text


@pytest.mark.parametrize("name", ["fastapi_app.py", "flask_app.py"])
def test_a_web_app_that_waits(web_app, sku, name):
    orders = web_app(name) + "/orders"
    line = {"orderid": "o-1", "sku": sku, "qty": 4}

    assert call(orders, line) == (200, {"batchref": f"b-{sku}"})
    assert call(orders, line) == (200, {"batchref": f"b-{sku}"})  # a double click
    other = {**line, "orderid": "o", "sku": f"1-{sku}"}
    assert call(orders, other) == (409, {"detail": f"Invalid sku 1-{sku}"})
    assert call(orders, {**line, "sku": "NONE"}) == (409, {"detail": "Invalid sku NONE"})
    assert call(orders, {**line, "qty": 0}) == (409, {"detail": "qty must be at least 1"})
    assert call(orders, {**line, "qty": 7}) == (200, {"batchref": None})


def test_a_web_app_that_does_not_wait(web_app, sku):
    orders = web_app("django_app.py") + "/orders"

    def outcome(line: dict[str, Any]) -> Any:
        status, sent = call(orders, line)
        assert status == 202
        return eventually(
            lambda: next((s for s in [call(f"{orders}/{sent['id']}")[1]] if s["state"] != "waiting"), None),
            what="the answer",
        )

    assert outcome({"orderid": "o-1", "sku": sku, "qty": 4}) == {"state": "done", "batchref": f"b-{sku}"}
    refused = outcome({"orderid": "o", "sku": f"1-{sku}", "qty": 4})
    assert refused == {"state": "refused", "why": f"Invalid sku 1-{sku}"}


@pytest.mark.parametrize("name", ["fastapi_app.py", "django_app.py"])
def test_a_shop_that_dies_and_comes_back(web_app, sku, name):
    before, after = ({"orderid": f"o-{moment}", "sku": sku, "qty": 2} for moment in ("before", "after"))
    url = web_app(name)

    for line, moment in ((before, "before-commit"), (after, "after-commit")):
        with pytest.raises(OSError):  # noqa: PT011  whichever a dead server's client gets
            call(f"{url}/orders?crash={moment}", line)
        url = web_app(name)

    def state(line: dict[str, Any]) -> Any:
        status, answer = call(f"{url}/orders/checkout-orderid={line['orderid']}&qty=2&sku={sku}")
        return answer["state"] if status == 200 else status

    eventually(lambda: state(after) == "done", what="the answer to what was committed")
    assert state(before) == 404


def test_an_unknown_order_is_not_found_instead_of_pending_for_ever(web_app):
    orders = web_app("django_app.py") + "/orders"

    assert call(f"{orders}/{uuid4()}") == (404, {"detail": "unknown order"})


@pytest.mark.parametrize(
    ("name", "status"), [("fastapi_app.py", 422), ("flask_app.py", 400), ("django_app.py", 400)]
)
def test_a_web_app_refuses_an_order_that_lacks_a_field(web_app, name, status):
    refused, body = call(web_app(name) + "/orders", {"orderid": "o1", "sku": "LAMP"})

    assert refused == status
    assert "qty" in json.dumps(body)


@pytest.mark.parametrize("name", ["fastapi_app.py", "flask_app.py"])
def test_a_web_app_answers_503_within_seconds_without_servers(web_app, nowhere, name):
    orders = web_app(name, nowhere) + "/orders"

    began = time.monotonic()
    status, body = call(orders, {"orderid": "o1", "sku": "LAMP", "qty": 1})

    assert (status, list(body)) == (503, ["detail"])
    assert time.monotonic() - began < 15


def test_a_shop_that_does_not_wait_takes_orders_while_nobody_answers(web_app, nowhere):
    orders = web_app("django_app.py", nowhere) + "/orders"

    status, taken = call(orders, {"orderid": "o1", "sku": "LAMP", "qty": 1})

    assert status == 202
    assert call(f"{orders}/{taken['id']}") == (200, {"state": "waiting"})


@pytest.fixture(scope="session")
def node_sender(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Node.js example with its package installed."""
    if shutil.which("npm") is None:
        missing("npm", "Debian's package of that name")
    folder = tmp_path_factory.mktemp("node") / "sender"
    shutil.copytree(SENDERS / "node", folder, ignore=shutil.ignore_patterns("node_modules"))
    install = ["npm", "ci", "--no-audit", "--no-fund", "--loglevel=error"]
    done = subprocess.run(install, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode != 0:
        missing(
            "the npm packages of the Node.js example",
            f"npm ci failed: {' '.join(done.stderr[-500:].split())}",
        )
    return folder / "send.js"


@pytest.mark.timeout(400)
def test_node_js(node_sender, environment, sku):
    line = {"orderid": "o1", "sku": sku, "qty": 4}
    command = ["node", str(node_sender), "allocation.allocate"]

    assert json.loads(run(*command, json.dumps(line), env=environment)) == f"b-{sku}"

    refused = subprocess.run(
        [*command, json.dumps({**line, "sku": "NONE"})],
        env=environment, capture_output=True, text=True, timeout=90, check=False,
    )  # fmt: skip
    assert refused.returncode == 1
    assert "InvalidSku" in refused.stderr
    assert "Invalid sku NONE" in refused.stderr
