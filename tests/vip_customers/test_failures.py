"""Independent failures: a failure after an order loses neither the order nor the congratulation."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import redis
from celery import Celery
from sqlalchemy import create_engine, text

from examples.vip_customers.demo import VIP
from local import ROOT
from local.addresses import Addresses
from local.processes import programs, readiness
from local.processes.child import Child
from local.servers.mail_server import MailSink
from local.servers.redis_server import Redis
from local.service import Service
from local.waiting import eventually

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

#: Short times, so that deliveries fail within seconds; only the operator re-runs them.
FAST = {
    "VIP_EVENT_MAX_RETRIES": "1",
    "VIP_EVENT_BACKOFF_MAX_S": "1",
    "VIP_MAX_CRASHES": "1",
    "VIP_RERUN_MAX": "0",
}
CUSTOMERS = ("harry", "sally")
ORDERS_EACH = 4


@dataclass
class RunningShop:
    """The shop's workers, one release after the other, and an app that sends orders."""

    addresses: Addresses
    folder: Path
    checkout: Celery

    @property
    def env(self) -> dict[str, str]:
        return {**self.addresses.environment(VIP), **FAST}

    def worker(self, release: Service = VIP, name: str = "shop") -> Child:
        """Return a running worker of a release."""
        child = programs.worker(name, VIP.work_queues, self.folder, self.env, 2, service=release)
        child.start()
        eventually(lambda: readiness.workers_answer(self.addresses.broker_url, name), 90, f"worker {name}")
        return child

    def order_everything(self) -> None:
        """Send all orders, and check that each is accepted."""
        sent = [
            self._send(customer, number) for number in range(1, ORDERS_EACH + 1) for customer in CUSTOMERS
        ]
        for answer in sent:
            assert answer.get(timeout=120) is None
        assert self.sql("SELECT count(*) FROM orders") == [(len(sent),)]

    def operator(self, *command: str) -> None:
        environment = {**os.environ, **self.env}
        tool = [sys.executable, "-m", VIP.tool, *command]
        subprocess.run(tool, env=environment, cwd=ROOT, check=True, capture_output=True, timeout=60)

    def wait_for_deliveries(self, **expected: int) -> None:
        """Wait until there are exactly these numbers of deliveries in each state."""

        def as_expected() -> bool:
            found = dict(self.sql("SELECT status, count(*) FROM deliveries GROUP BY 1"))
            assert found == expected
            return True

        eventually(as_expected, 120, f"deliveries: {expected}")

    def sql(self, query: str) -> list[tuple[Any, ...]]:
        engine = create_engine(self.addresses.database_url)
        try:
            with engine.begin() as connection:
                return [tuple(row) for row in connection.execute(text(query))]
        finally:
            engine.dispose()

    def _send(self, customer: str, number: int) -> Any:
        order = {"orderid": f"{customer}-{number}", "customer_id": customer, "items": 1, "amount": 999}
        facts = {**order, "placed_on": f"2026-01-{number:02}"}
        return self.checkout.send_task("vip.create_order", kwargs=facts, queue="vip.commands")


@pytest.fixture
def shop(
    vip_database: str, redis_server: Redis, mail_sink: MailSink, server_folder: Path
) -> Iterator[RunningShop]:
    """A shop on an empty database and an empty broker; no worker runs yet."""
    for number in (2, 3):
        with redis.Redis.from_url(redis_server.url_of(number)) as client:
            client.flushdb()
    addresses = Addresses(vip_database, redis_server.url_of(2), redis_server.url_of(3), mail_sink.url, "")
    folder = Path(tempfile.mkdtemp(prefix="vip-", dir=server_folder))
    with Celery(
        "checkout", broker=addresses.broker_url, backend=addresses.result_backend_url, set_as_current=False
    ) as checkout:
        yield RunningShop(addresses, folder, checkout)


@pytest.fixture
def good_worker(shop: RunningShop) -> Iterator[Child]:
    child = shop.worker()
    yield child
    child.stop()


def test_with_the_mail_server_down_every_order_is_accepted_and_every_vip_congratulated_later(
    shop: RunningShop, good_worker: Child, mail_sink: MailSink
):
    mail_sink.stop()
    shop.order_everything()
    shop.wait_for_deliveries(done=len(CUSTOMERS) * ORDERS_EACH, failed=len(CUSTOMERS))

    mail_sink.start()
    shop.operator("deliveries", "rerun", "--handler", "congratulate_vip_customer")

    _see_each_vip_congratulated_once(shop, mail_sink)


@pytest.mark.parametrize(
    ("release", "error"),
    [
        ("buggy_rule", "ZeroDivisionError: a bug in the VIP rule"),
        ("crashing_history", "WorkerCrashed: Parked"),
    ],
)
def test_with_a_bad_release_every_order_is_accepted_and_the_fixed_one_finds_the_vips(
    shop: RunningShop, mail_sink: MailSink, release: str, error: str
):
    bad = shop.worker(replace(VIP, app=f"tests.vip_customers.releases.{release}"), name=release)
    try:
        shop.order_everything()
        shop.wait_for_deliveries(failed=len(CUSTOMERS) * ORDERS_EACH)
        assert all(text.startswith(error) for (text,) in shop.sql("SELECT last_error FROM deliveries"))
    finally:
        bad.stop()

    repaired = shop.worker(name="repaired")
    try:
        shop.operator("deliveries", "rerun", "--handler", "update_customer_history")

        _see_each_vip_congratulated_once(shop, mail_sink)
    finally:
        repaired.stop()


def test_with_several_workers_and_every_message_twice_each_vip_is_congratulated_once(
    shop: RunningShop, good_worker: Child, mail_sink: MailSink
):
    second = shop.worker(name="second")
    try:
        shop.order_everything()
        shop.order_everything()
        for delivery_id, handler in shop.sql("SELECT id::text, handler FROM deliveries"):
            shop.checkout.send_task(f"vip.{handler}", task_id=delivery_id, queue="vip.events")

        _see_each_vip_congratulated_once(shop, mail_sink)
    finally:
        second.stop()


def _see_each_vip_congratulated_once(shop: RunningShop, mail_sink: MailSink) -> None:
    shop.wait_for_deliveries(done=len(CUSTOMERS) * (ORDERS_EACH + 1))
    assert shop.sql("SELECT customer_id FROM histories WHERE is_vip ORDER BY 1") == [(c,) for c in CUSTOMERS]
    mails = mail_sink.mails.all()
    assert sorted(mail["To"].addresses[0].username for mail in mails) == list(CUSTOMERS)
    owed = shop.sql("SELECT id FROM deliveries WHERE handler = 'congratulate_vip_customer'")
    assert {mail["Message-ID"] for mail in mails} == {f"<{row[0]}.1@example.com>" for row in owed}
