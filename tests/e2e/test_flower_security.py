"""Flower serves only its operator: strangers and other web sites get nothing."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from uuid import uuid4

import psutil
import pytest
import yaml
from celery.utils.nodenames import gethostname
from flower.urls import handlers
from sqlalchemy import create_engine, text
from tornado.web import URLSpec

from local import ROOT
from local.ports import LOOPBACK, free_port
from local.processes import programs, readiness
from local.processes.child import Child
from local.waiting import eventually
from messaging.flower.pages import PAGES
from tests.e2e import make_up
from tests.e2e.browser import chromium
from tests.e2e.conftest import Backend, Broker, Shop
from tests.e2e.web import Answer, request

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

LOGIN = "operator:secret"
#: Addresses without a login: they show only names and numbers, or nothing.
OPEN = {"/metrics", "/healthcheck", "/static/js/flower.js"}


def addresses() -> list[str]:
    """Return an address of each of Flower's pages and API calls, including ours."""
    patterns = [rule.regex.pattern.rstrip("$") if isinstance(rule, URLSpec) else rule[0] for rule in handlers]
    patterns += [page.regex.pattern.rstrip("$") for page in PAGES]
    filled = {re.sub(r"\([^)]*\)", "js/flower.js", pattern) for pattern in patterns if pattern != ".*"}
    return sorted({address.replace("/?", "") for address in filled} | {"/no-such-page"})


@dataclass
class Site:
    """`make up`, as seen by its operator and by strangers."""

    url: str
    login: str
    environment: dict[str, str]
    process: subprocess.Popen[str]
    shop: Shop

    def ask(self, path: str, login: str | None = None, data: bytes | None = None, **headers: str) -> Answer:
        """Send Flower a request; `Sec_Fetch_Site` sets that header."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return request(f"{self.url}{path}", login, data, named)

    def batches(self, reference: str) -> int:
        """Return how many batches have a reference."""
        port = self.environment["ALLOCATION_POSTGRES_PORT"]
        engine = create_engine(f"postgresql+psycopg2://allocation@{LOOPBACK}:{port}/allocation")
        with engine.connect() as connection:
            query = text("SELECT count(*) FROM batches WHERE reference = :reference")
            found = connection.execute(query, {"reference": reference}).scalar_one()
        engine.dispose()
        return int(found)

    def worker(self) -> psutil.Process:
        """Return the worker for commands."""
        children = psutil.Process(self.process.pid).children()
        [worker] = [child for child in children if "--hostname=commands@%h" in child.cmdline()]
        return worker


@pytest.fixture(scope="module")
def site(server_folder: Path) -> Iterator[Site]:
    """A running `make up`, with settings that would open Flower's API."""
    environment = make_up.new_environment(server_folder) | {"FLOWER_UNAUTHENTICATED_API": "true"}
    with make_up.run(environment) as up:
        said = make_up.read_until_ready(up)
        redis = f"redis://{LOOPBACK}:{environment['ALLOCATION_REDIS_PORT']}"
        shop = Shop(Broker(f"{redis}/0", f"{redis}/1"))
        url = f"http://{LOOPBACK}:{environment['ALLOCATION_FLOWER_PORT']}"
        site = Site(url, make_up.printed_login(said), environment, up, shop)
        eventually(
            lambda: f"commands@{node()}" in site.ask("/api/workers?refresh=1", site.login).text,
            60,
            "a worker",
        )
        yield site
        shop.close()
        up.send_signal(signal.SIGTERM)
        assert up.wait(60) == 0


def node() -> str:
    """Return this machine's name in Celery."""
    return str(gethostname())


def order_of(reference: str) -> bytes:
    """Return the body with which Flower's API sends a command."""
    return json.dumps({"kwargs": {"ref": reference, "sku": "FLOWER", "qty": 1}}).encode()


@pytest.mark.parametrize("login", [None, "operator:wrong", ":", "operator:"])
def test_no_page_of_flower_answers_without_the_login(site, login):
    answers = {path: (site.ask(path, login), site.ask(path, login, b"{}")) for path in addresses()}

    opened = {path for path, found in answers.items() if {200} & {answer.status for answer in found}}
    assert opened == OPEN | {"/logout"}
    assert {found[1].status for found in answers.values()} <= {401, 403, 404, 405}
    assert "logged out" in answers["/logout"][0].text


def test_the_operator_sees_messages_and_sends_commands(site):
    reference = f"operator-{uuid4()}"

    sent = site.ask("/api/task/async-apply/allocation.create_batch", site.login, order_of(reference))

    assert sent.status == 200
    eventually(lambda: site.batches(reference) == 1, what="the batch")
    eventually(lambda: reference in site.ask("/api/tasks", site.login).text, what="the task in Flower")


OTHER_SITES = [
    {"Origin": "https://evil.example"},
    {"Origin": "null"},
    {"Origin": "http://127.0.0.1:8000"},
    {"Origin": "http://127.0.0.1"},
    {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "no-cors"},
    {"Sec_Fetch_Site": "same-site", "Sec_Fetch_Mode": "no-cors"},
    {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate", "Sec_Fetch_Dest": "iframe"},
]


@pytest.mark.parametrize("headers", OTHER_SITES, ids=str)
def test_another_site_can_neither_send_a_command_nor_shut_a_worker_down(site, headers):
    reference, worker = f"evil-{uuid4()}", site.worker()
    order = order_of(reference)
    for login in None, site.login:  # a browser with the login sends it along
        for data in order, b"":
            site_of_worker = f"/api/worker/shutdown/commands@{node()}"
            assert site.ask(site_of_worker, login, data, **headers).status == 403
        apply = "/api/task/async-apply/allocation.create_batch"
        assert site.ask(apply, login, order, Content_Type="text/plain", **headers).status == 403

    site.shop.ask("create_batch", ref=f"after-{reference}", sku="FLOWER", qty=1)
    assert site.batches(reference) == 0
    assert worker.is_running()


@pytest.mark.parametrize("headers", OTHER_SITES, ids=str)
def test_another_site_can_read_and_do_nothing(site, headers):
    answers = {path: site.ask(path, site.login, **headers) for path in addresses()}
    preflight = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    asked = [request(f"{site.url}{path}", None, None, preflight, "OPTIONS") for path in addresses()]

    assert {path for path, answer in answers.items() if answer.status != 403} == set()
    assert {answer.status for answer in asked} == {403}
    given = {name for answer in (*answers.values(), *asked) for name in answer.headers}
    assert not {name for name in given if name.startswith("Access-Control")}


def test_a_link_on_another_site_opens_a_page(site):
    link = {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate", "Sec_Fetch_Dest": "document"}

    assert site.ask("/deliveries", site.login, **link).status == 200
    assert site.ask("/api/worker/shutdown/x", site.login, b"", **link).status == 403


FOREIGN = ["evil.example", "evil.example:5555", "localhost.evil.example", "127.0.0.1.nip.io", "10.9.8.7"]


@pytest.mark.parametrize("host", FOREIGN)
def test_a_foreign_host_name_is_served_nothing(site, host):
    """DNS rebinding: the browser believes that Flower is the attacker's own site."""
    answers = [site.ask(path, site.login, data, Host=host) for path in addresses() for data in (None, b"{}")]

    assert {answer.status for answer in answers} == {403}
    assert all("add it to ALLOCATION_FLOWER_HOSTS" in answer.text for answer in answers)


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:80", "127.0.0.1:1", "[::1]:5555"])
def test_flower_answers_to_loopback_names(site, host):
    assert site.ask("/deliveries", site.login, Host=host).status == 200


def test_no_page_can_be_framed(site):
    for path in addresses():
        assert site.ask(path, site.login).headers["X-Frame-Options"] == "DENY", path


class EvilSite(BaseHTTPRequestHandler):
    """A page that tries every attack, and reports when it has finished."""

    page = b""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(self.page)

    def log_message(self, *_: Any) -> None:
        """Be quiet."""


EVIL_PAGE = """<title>working</title><form id=form method=post target=_blank enctype=text/plain
action="{flower}/api/worker/shutdown/commands@{node}"></form><script>
const send = (path, body) => fetch("{flower}" + path, {{
  method: "POST", mode: "no-cors", credentials: "include", body: body}}).catch(() => 0);
const read = path => fetch("{flower}" + path, {{credentials: "include"}}).then(r => r.text()).catch(() => "");
(async () => {{
  await send("/api/task/async-apply/allocation.create_batch",
             JSON.stringify({{kwargs: {{ref: "{reference}", sku: "EVIL", qty: 1}}}}));
  await send("/api/worker/shutdown/commands@{node}", "");
  const seen = await read("/api/tasks") + await read("/deliveries") + await read("/metrics");
  form.submit();
  document.title = seen ? "read " + seen : "nothing";
}})();
</script>"""


@pytest.fixture
def evil_site(site) -> Iterator[tuple[str, str]]:
    """Return the address of an attacker's page on another port, and the batch that it tries to create."""
    reference = f"evil-{uuid4()}"
    page = EVIL_PAGE.format(flower=site.url, node=node(), reference=reference)
    handler = type("Handler", (EvilSite,), {"page": page.encode()})
    with ThreadingHTTPServer((LOOPBACK, 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://{LOOPBACK}:{server.server_address[1]}/", reference
        server.shutdown()


def test_an_attackers_page_gets_nothing_from_flower(site, evil_site):
    """A real browser with the login visits the attacker's page, and Flower under the attacker's name."""
    (address, reference), worker = evil_site, site.worker()
    port = site.environment["ALLOCATION_FLOWER_PORT"]
    with chromium(site.login, f"--host-resolver-rules=MAP evil.example {LOOPBACK}") as browser:
        page = browser.new_page()
        page.goto(f"{site.url}/deliveries")
        assert "Deliveries" in page.title() + page.inner_text("body")

        page.goto(address)
        eventually(lambda: page.title() != "working", what="the end of the attack")
        assert page.title() == "nothing"

        rebound = page.goto(f"http://evil.example:{port}/api/tasks")
        assert rebound.status == 403

    site.shop.ask("create_batch", ref=f"after-{reference}", sku="FLOWER", qty=1)
    assert site.batches(reference) == 0
    assert worker.is_running()


def test_flowers_own_buttons_work_in_a_browser(site):
    with chromium(site.login) as browser:
        page = browser.new_page()
        page.goto(f"{site.url}/worker/commands@{node()}")
        processes = len(site.worker().children())

        page.locator("#worker-pool-grow").click()

        page.get_by_text("pool by 1").wait_for()
    eventually(lambda: len(site.worker().children()) == processes + 1, what="one more process")


@pytest.fixture(scope="module")
def broker(broker_of) -> Broker:
    """Redis alone."""
    return broker_of("redis")


@pytest.mark.parametrize("login", [None, "", "operator:", ":secret", "operator:a,b"])
def test_flower_does_not_start_without_a_login(backend: Backend, login: str | None):
    env = {**backend.env, "FLOWER_UNAUTHENTICATED_API": "true"}
    child = programs.flower(
        backend.folder, env | ({} if login is None else {"FLOWER_BASIC_AUTH": login}), free_port()
    )
    child.start()
    try:
        eventually(lambda: not child.running, 60, "the end of Flower")
    finally:
        child.stop()

    assert child.exit_code == 1
    assert "set FLOWER_BASIC_AUTH=user:password" in child.log_text()


COMPOSED = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["flower"]


def filled(value: str) -> str:
    """Return a value of the compose file with only the login set."""
    given = {"ALLOCATION_FLOWER_USER": "operator", "ALLOCATION_FLOWER_PASSWORD": "secret"}
    variable = re.compile(r"\$\{(\w+):(-|\?)([^}]*)\}")
    return variable.sub(lambda found: given.get(found[1], found[3] if found[2] == "-" else ""), value)


@pytest.fixture(scope="module")
def composed(backend: Backend) -> Iterator[int]:
    """Run Flower with the command and the variables of the compose file; return its port."""
    port = free_port()
    env = {name: filled(value) for name, value in COMPOSED["environment"].items()} | backend.env
    moved = {"--port=5555": f"--port={port}", "--address=0.0.0.0": f"--address={LOOPBACK}"}
    arguments = [moved.get(argument, argument) for argument in COMPOSED["command"][3:]]
    child = programs.celery("composed", backend.folder, env, *arguments)
    child.start()
    yield wait_for(child, port)
    child.stop()


def wait_for(child: Child, port: int) -> int:
    """Return the port once Flower answers, by the health check of `docker compose`."""

    def answers() -> bool:
        assert child.running, child.log_tail()
        return readiness.flower_answers(port)

    eventually(answers, 60, "an answer from Flower")
    return port


def test_the_compose_files_flower_asks_for_a_login(composed):
    url = f"http://{LOOPBACK}:{composed}"

    assert {path for path in addresses() if request(f"{url}{path}").status == 200} == OPEN | {"/logout"}
    assert not [path for path in addresses() if request(f"{url}{path}", LOGIN).status == 401]


@pytest.mark.parametrize("path", ["/metrics", "/healthcheck", "/deliveries"])
def test_the_compose_files_flower_is_reached_by_its_service_name_and_no_other(composed, path):
    url = f"http://{LOOPBACK}:{composed}{path}"

    assert request(url, LOGIN, headers={"Host": "flower:5555"}).status == 200
    assert request(url, LOGIN, headers={"Host": "evil.example"}).status == 403


def test_the_compose_files_health_check_passes(composed):
    program, *arguments = COMPOSED["healthcheck"]["test"][1:]
    check = [argument.replace("5555", str(composed)) for argument in arguments]

    assert program == "python"
    assert subprocess.run([sys.executable, *check], timeout=60, check=False).returncode == 0
