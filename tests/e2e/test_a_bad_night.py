"""The run book docs/how-to/a-bad-night.md, followed word for word during a real outage."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable

import pytest

from local import ROOT
from local.servers.mail_server import MailSink
from local.waiting import eventually
from tests.e2e.conftest import Backend, Broker, Shop

pytestmark = [pytest.mark.usefixtures("worker", "housekeeping"), pytest.mark.slow, pytest.mark.timeout(300)]

PAGE = ROOT / "docs" / "how-to" / "a-bad-night.md"
HANDLER = "send_out_of_stock_notification"


@pytest.fixture(scope="module")
def broker(broker_of: Callable[[str], Broker]) -> Broker:
    """One kind of broker is enough: it does not matter here."""
    return broker_of("redis")


def commands() -> list[str]:
    """Return the commands of the page, in their order."""
    blocks = re.findall(r"^```sh\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def order(shop: Shop, name: str) -> None:
    """Order more of a product than there is, so that the stock team is to get a mail."""
    shop.ask("create_batch", ref=f"batch-{name}", sku=name, qty=1)
    assert shop.ask("allocate", f"order-{name}", name, 2) is None


def test_the_run_book_ends_an_outage(backend: Backend, shop: Shop, module_mail: MailSink):
    done: list[str] = []

    def follow(**names: str) -> str:
        """Run the next command of the page, with these names filled in; return its output."""
        line = commands()[len(done)]
        done.append(line)
        for placeholder, name in names.items():
            line = re.sub(rf"\b{placeholder}\b", name, line)
        words = shlex.split(line)
        assert words[:3] == ["python", "-m", "allocation"]
        ran = subprocess.run(
            [sys.executable, *words[1:]], env={**os.environ, **backend.env}, cwd=ROOT, text=True,
            capture_output=True, timeout=120, check=False,
        )  # fmt: skip
        assert ran.returncode == 0 or "check" in words, ran.stdout + ran.stderr
        return ran.stdout

    def count(status: str) -> int:
        return int(backend.sql("SELECT count(*) FROM deliveries WHERE status = :status", status=status)[0][0])

    module_mail.stop()
    for number in (1, 2, 3):
        order(shop, f"LAMP-{number}")
    order(shop, "TEST-ORDER")
    backend.sql(
        "UPDATE deliveries SET status = 'failed', finished_at = now(), last_error = 'KeyError: a test order',"
        " failure_group = NULL WHERE payload->>'sku' = 'TEST-ORDER' RETURNING 1"
    )
    eventually(lambda: count("failed") == 4, 60, "four failures")

    assert "wrong" in follow()  # the mail server
    groups = re.findall(r"^([0-9a-f]{10}) +(\d+) ", follow(), re.MULTILINE)
    assert [number for _, number in groups] == ["3", "1"]
    [(example,)] = backend.sql("SELECT id::text FROM deliveries WHERE payload->>'sku' = 'LAMP-1'")
    assert "is paused" in follow()
    order(shop, "LAMP-4")
    eventually(lambda: count("waiting") == 1, 60, "a waiting delivery")
    assert "ConnectionRefusedError" in follow(EXAMPLE=example)
    assert "event = OutOfStock(sku='LAMP-1')" in follow(EXAMPLE=example)
    module_mail.start()
    assert "is resumed" in follow()
    said = follow(GROUP=groups[0][0])
    assert ": trying 1 first.\n3 requeued." in said
    assert "1 discarded for good." in follow(OTHER=groups[1][0])
    eventually(lambda: count("done") == 4, 60, "four mails")
    assert len(module_mail.mails.all()) == 4

    assert HANDLER in follow()
    entries = [json.loads(line) for line in follow().splitlines()]
    actions = [(entry["action"], entry["count"], entry["outcome"]) for entry in reversed(entries)]
    assert actions == [
        ("pause", None, None),
        ("resume", None, None),
        ("rerun", 3, "done"),
        ("discard", 1, "done"),
    ]
    assert done == commands()
