"""A mail server that is down for an hour costs a handful of attempts; all mails arrive once after that.

An hour is compressed to some seconds: pauses and intervals are as much shorter.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from examples.vip_customers.demo import VIP
from local.processes import programs
from local.processes.child import Child
from local.servers.mail_server import MailSink
from local.waiting import eventually
from tests.vip_customers.test_failures import RunningShop, shop

__all__ = ["shop"]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

#: VIPs that come into being while the mail server is down. Without a breaker each costs two attempts here,
#: and six with the settings' defaults.
CUSTOMERS = 60
HANDLER = "congratulate_vip_customer"
RELEASE = replace(VIP, app="tests.vip_customers.releases.with_breaker")

#: Real seconds to compressed ones: 3600 to 30.
COMPRESSED = {
    "VIP_BREAKER_PAUSE_S": "0.25",  # 30 s
    "VIP_BREAKER_PAUSE_MAX_S": "5",  # 10 min
    "VIP_RELAY_INTERVAL_S": "0.5",
    "VIP_RELAY_GRACE_S": "2",
}


@pytest.fixture
def running(shop: RunningShop) -> Iterator[RunningShop]:
    """A shop whose release has a breaker, with its housekeeping."""
    env = {**shop.env, **COMPRESSED}
    children: list[Child] = [
        programs.worker("shop", VIP.work_queues, shop.folder, env, 2, service=RELEASE),
        programs.housekeeping_worker(shop.folder, env, service=RELEASE),
        programs.beat(shop.folder, env, service=RELEASE),
    ]
    for child in children:
        child.start()
    yield shop
    for child in children:
        child.stop()


def sell_to_new_vips(shop: RunningShop) -> None:
    """Send three orders of each customer, and wait until all are taken."""
    sent = [
        shop.checkout.send_task(
            "vip.create_order",
            kwargs={
                "orderid": f"c{customer}-{number}", "customer_id": f"c{customer}", "items": 1, "amount": 999,
                "placed_on": f"2026-01-{number:02}",
            },
            queue="vip.commands",
        )
        for number in (1, 2, 3)
        for customer in range(CUSTOMERS)
    ]  # fmt: skip
    for answer in sent:
        answer.get(timeout=120)


def attempts(shop: RunningShop) -> int:
    """Return how many attempts at a congratulation were made."""
    return int(
        shop.sql("SELECT coalesce(sum(attempts), 0) FROM deliveries WHERE handler LIKE 'congr%'")[0][0]
    )


def congratulations(shop: RunningShop) -> dict[str, int]:
    """Return how many congratulations are in each state."""
    return dict(shop.sql("SELECT status, count(*) FROM deliveries WHERE handler LIKE 'congr%' GROUP BY 1"))  # type: ignore[arg-type]


def see_each_congratulated_once(shop: RunningShop, mail: MailSink) -> None:
    eventually(lambda: congratulations(shop) == {"done": CUSTOMERS}, 120, "all congratulations", every=0.5)
    mails = mail.mails.all()
    assert len(mails) == CUSTOMERS
    assert {one["To"].addresses[0].username for one in mails} == {f"c{number}" for number in range(CUSTOMERS)}


@pytest.mark.long
def test_with_a_breaker_an_hour_without_mail_costs_few_attempts_and_needs_no_operator(
    running: RunningShop, mail_sink: MailSink
):
    mail_sink.stop()
    sell_to_new_vips(running)
    eventually(lambda: congratulations(running) == {"waiting": CUSTOMERS}, 120, "all that wait", every=0.5)
    opened = "SELECT opened FROM breakers WHERE until > clock_timestamp()"
    eventually(lambda: running.sql(opened) and running.sql(opened)[0][0] >= 8, 120, "8 pauses", every=0.5)
    in_vain = attempts(running)

    mail_sink.start()
    see_each_congratulated_once(running, mail_sink)

    print(f"{CUSTOMERS} congratulations, {in_vain} attempts while the mail server was down")
    assert in_vain < 50
    assert running.sql("SELECT until, failures FROM breakers") == [(None, 0)]


def test_a_persons_pause_costs_no_attempt_and_ends_with_resume(running: RunningShop, mail_sink: MailSink):
    mail_sink.stop()
    running.operator("deliveries", "pause", HANDLER, "--reason", "the mail server is down")
    sell_to_new_vips(running)
    eventually(lambda: congratulations(running) == {"waiting": CUSTOMERS}, 120, "all that wait", every=0.5)
    assert attempts(running) == 0

    mail_sink.start()
    running.operator("deliveries", "resume", HANDLER)
    see_each_congratulated_once(running, mail_sink)

    assert attempts(running) == CUSTOMERS
