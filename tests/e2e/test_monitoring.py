"""A real Prometheus scrapes a worker and Flower, and answers every query of dashboard and alerts."""

from __future__ import annotations

import json
import os
import re
import shutil
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import yaml

from local import ROOT
from local.ports import LOOPBACK, free_port
from local.processes import programs, readiness
from local.processes.child import Child
from local.waiting import NotInTimeError, eventually
from scripts.dashboard import ROWS
from tests.e2e.browser import chromium
from tests.e2e.conftest import Backend
from tests.programs import missing

#: A folder for pictures of the documentation; nothing is taken without it.
SCREENSHOTS = os.environ.get("ALLOCATION_SCREENSHOTS")
ALERTS = ROOT / "docs" / "prometheus-alerts.yml"
RULES = yaml.safe_load(ALERTS.read_text())["groups"][0]["rules"]
QUERIES = [query for panels in ROWS.values() for panel in panels for query, _ in panel.queries]
NAME = re.compile(r"\ballocation_\w+")


@pytest.fixture(scope="module")
def broker(broker_of):
    """Redis, where every metric exists."""
    return broker_of("redis")


@pytest.fixture(scope="module")
def backend(backend: Backend) -> Backend:
    """A backend whose worker serves metrics."""
    backend.env |= {"ALLOCATION_METRICS_ADDRESS": f"{LOOPBACK}:{free_port()}"}
    return backend


@pytest.fixture(scope="module")
def flower(backend: Backend) -> Iterator[str]:
    """The address of a Flower."""
    port = free_port()
    env = {**backend.env, "FLOWER_BASIC_AUTH": "operator:s3cret"}
    child = programs.flower(backend.folder, env, port)
    child.start()
    eventually(lambda: readiness.flower_answers(port), 60, "Flower")
    yield f"{LOOPBACK}:{port}"
    child.stop()


@pytest.fixture(scope="module")
def housekeeping(backend: Backend) -> Iterator[str]:
    """The housekeeping worker and beat; the worker has an address of its own."""
    address = f"{LOOPBACK}:{free_port()}"
    env = {**backend.env, "ALLOCATION_METRICS_ADDRESS": address}
    children = [programs.housekeeping_worker(backend.folder, env), programs.beat(backend.folder, env)]
    for child in children:
        child.start()
    backend.wait_for_worker(children[0])
    yield address
    for child in children:
        child.stop()


@pytest.fixture
def scraped(backend: Backend, housekeeping: str, flower: str) -> tuple[str, ...]:
    """The addresses to scrape."""
    return backend.env["ALLOCATION_METRICS_ADDRESS"], housekeeping, flower


@pytest.fixture
def traffic(worker, housekeeping, shop, sku, backend) -> Iterator[None]:
    """An order of each kind, and its mail; another mail waits, since its handler is paused."""
    shop.ask("allocate", orderid="o1", sku=sku, qty=1)
    shop.ask("allocate", orderid="o2", sku=sku, qty=5)
    with pytest.raises(Exception, match="Invalid sku"):
        shop.ask("allocate", orderid="o3", sku=f"no {sku}", qty=1)
    shop.app.send_task(
        "allocation.allocate",
        ("o4", sku, 1),
        queue="allocation.commands",
        declare=(),
        headers={"sent_at": 1.0},
    ).get(timeout=30)
    with pytest.raises(Exception, match="nothing_like_it"):
        shop.ask("nothing_like_it")
    eventually(lambda: backend.sql("SELECT FROM deliveries WHERE status = 'done'"), what="the mail")
    backend.sql(
        "INSERT INTO pauses (scope, name, actor, reason)"
        " VALUES ('handler', 'send_out_of_stock_notification', 'test', 'to have one wait') RETURNING 1"
    )

    def one_waits() -> bool:
        shop.ask("allocate", orderid=str(uuid4()), sku=sku, qty=5)
        return bool(backend.sql("SELECT FROM deliveries WHERE status = 'waiting'"))

    eventually(one_waits, what="a delivery that waits", every=0.5)
    yield
    backend.sql("DELETE FROM pauses RETURNING 1")


def read(url: str) -> str:
    """Return what an address serves."""
    with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310  our own
        text: str = answer.read().decode()
        return text


def test_every_metric_of_dashboard_and_alerts_is_really_served(traffic, scraped):
    asked = {name for query in (*QUERIES, *(rule["expr"] for rule in RULES)) for name in NAME.findall(query)}

    def lacking() -> set[str]:
        served = {name for address in scraped for name in NAME.findall(read(f"http://{address}/metrics"))}
        return asked - served

    eventually(lambda: not lacking(), 60, f"every metric, also {lacking()}")
    assert len(asked) >= 25


@pytest.fixture
def prometheus(scraped, tmp_path: Path) -> Iterator[str]:
    """Debian's Prometheus, which scrapes every second."""
    program = shutil.which("prometheus")
    if program is None:
        missing("prometheus", "Debian's package of that name")
    jobs = [{"job_name": "allocation", "static_configs": [{"targets": list(scraped)}]}]
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(ALERTS)],
        "scrape_configs": jobs,
    }
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
    address = f"{LOOPBACK}:{free_port()}"
    command = [
        program, f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/data",
        f"--web.listen-address={address}",
    ]  # fmt: skip
    child = Child("prometheus", command, log=tmp_path / "prometheus.log")
    child.start()
    eventually(lambda: read(f"http://{address}/-/ready"), 60, "Prometheus")
    yield f"http://{address}/api/v1"
    child.stop()


def take_screenshot(address: str, path: Path) -> None:
    """Show the alerts, for the documentation."""
    with chromium("any:one") as browser:
        page = browser.new_page()
        page.goto(f"{address}/classic/alerts")
        page.locator("b", has_text="DeadLetters").click()
        page.locator("code", has_text="alert: DeadLetters").wait_for()
        page.locator("td", has_text=str(ALERTS)).first.evaluate("cell => cell.textContent = 'allocation'")
        page.screenshot(path=path)


def ask(prometheus: str, path: str, **parameters: str) -> Any:
    """Ask Prometheus' API."""
    answer = json.loads(read(f"{prometheus}/{path}?{urllib.parse.urlencode(parameters)}"))
    assert answer["status"] == "success"
    return answer["data"]


def test_prometheus_answers_every_query_of_the_dashboard(traffic, prometheus):
    def found(query: str) -> bool:
        return bool(ask(prometheus, "query", query=query.replace("$__rate_interval", "30s"))["result"])

    def unanswered() -> list[str]:
        return [query for query in QUERIES if not found(query)]

    with suppress(NotInTimeError):
        eventually(lambda: not unanswered(), 60, every=1)
    assert unanswered() == []
    if SCREENSHOTS:
        take_screenshot(prometheus.removesuffix("/api/v1"), ROOT / SCREENSHOTS / "prometheus-alerts.png")
    rules = ask(prometheus, "rules")["groups"][0]["rules"]
    assert {rule["name"] for rule in rules} == {rule["alert"] for rule in RULES}
    assert {rule["health"] for rule in rules} == {"ok"}
