"""Whatever a stranger puts on the queue, the worker survives, and every message is accounted for."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import redis
from celery.result import AsyncResult

from local.processes.child import Child
from local.servers.mail_server import MailSink
from local.waiting import eventually
from tests.e2e.conftest import Backend, Broker, Shop
from tests.e2e.hostile_messages import COMMANDS, hostile
from tests.property.strategies import NASTY

MESSAGES = 10_000
QUEUE = "allocation.commands"
MARK = re.compile(rb"mark-\d{6}-")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def queue(broker: Broker) -> Iterator[redis.Redis]:
    """The broker, without a Celery client."""
    with redis.Redis.from_url(broker.broker_url) as client:
        yield client


def is_empty(queue: redis.Redis) -> bool:
    """Return whether no message is waiting or unacknowledged."""
    return (
        not queue.llen(QUEUE) and not queue.llen("allocation.events") and not queue.hlen("allocation.unacked")
    )


def accounted(backend: Backend, broker: Broker, worker: Child) -> set[bytes]:
    """Return the marks found in answers, dead letters, or the log of a handler's task."""
    found: set[bytes] = set()
    with redis.Redis.from_url(broker.result_backend_url) as results:
        for key in results.scan_iter("celery-task-meta-*", count=5_000):
            found.update(MARK.findall(key))
    for body, *texts in backend.sql(
        "SELECT body, task_id, headers::text, properties::text FROM dead_letters"
    ):
        found.update(MARK.findall(bytes(body)) + MARK.findall(repr(texts).encode()))
    log = worker.log_text().encode()
    found.update(
        re.findall(rb"allocation\.(?:reallocate|send_\w+): '(mark-\d{6}-)' is not the id of a delivery", log)
    )
    return found


@pytest.mark.parametrize("broker", ["redis"], indirect=True)  # raw bytes are put on its lists
def test_ten_thousand_hostile_messages_leave_the_worker_alive_and_are_all_accounted_for(
    backend: Backend, broker: Broker, worker: Child, queue: redis.Redis, shop: Shop, tmp_path: Path
) -> None:
    """Each ends as an answer or a dead letter, and only tasks of the contract run."""
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    rng, pid, canary = random.Random(seed), worker.pid, tmp_path / "canary"
    marks = [f"mark-{number:06}-" for number in range(MESSAGES)]
    for start in range(0, MESSAGES, 500):
        with queue.pipeline(transaction=False) as pipe:
            for mark in marks[start : start + 500]:
                pipe.lpush(QUEUE, hostile(rng, mark, canary))
            pipe.execute()

    eventually(lambda: is_empty(queue), 500, "an empty queue", every=0.5)

    assert shop.ask("create_batch", "after", "after", 1) is None
    assert worker.pid == pid
    assert not canary.exists()
    missing = {mark.encode() for mark in marks} - accounted(backend, broker, worker)
    assert not missing, f"{len(missing)} of {MESSAGES}, such as {sorted(missing)[:5]}"
    ran = {row[0].partition("(")[0] for row in backend.sql("SELECT command FROM inbox WHERE error IS NULL")}
    assert ran <= {"CreateBatch", "Allocate", "ChangeBatchQuantity"}
    assert backend.sql("SELECT 1 FROM batches WHERE reference = 'callback'") == []


def test_injection_in_every_text_field_does_nothing(
    backend: Backend, worker: Child, shop: Shop, module_mail: MailSink
) -> None:
    """SQL, log lines, terminal codes and mail headers arrive as text or are refused."""
    orders: list[Any] = []
    for task, fields in COMMANDS.items():
        for name in ("ref", "sku", "orderid", "eta"):
            for number, nasty in enumerate(NASTY):
                if name in fields:
                    own = {**fields, "ref": f"r{number}"} if "ref" in fields and name != "ref" else fields
                    orders.append(shop.send(task.partition(".")[2], **{**own, name: nasty}))

    with ThreadPoolExecutor(4) as pool:
        outcomes = set(pool.map(_outcome, orders))

    allowed = {"InvalidMessage", "InvalidSku", "UnknownBatch", "BatchAlreadyExists", "done"}
    assert outcomes <= allowed
    log = worker.log_text()
    assert not re.search(r"^INFO forged", log, re.MULTILINE)
    assert not re.search("[\x00\x07\x1b\u202e\u2028]", log)
    kept = [text for row in backend.sql("SELECT reference, sku FROM batches") for text in row]
    assert all(text.isprintable() for text in kept)


def test_a_sku_cannot_write_a_mail_header(
    backend: Backend, worker: Child, shop: Shop, module_mail: MailSink
) -> None:
    """The text of a name appears in the subject, and nowhere else."""
    skus = [text for text in NASTY if 1 <= len(text) <= 255 and text.isprintable()]
    skus += ["x, Bcc: everybody@example.com", "%0d%0aBcc: everybody@example.com", "=?utf-8?b?DQpCY2M6IHg=?="]
    module_mail.mails.clear()
    for number, sku in enumerate(skus):
        shop.ask("create_batch", f"mail-{number}", sku, 1)
        assert shop.ask("allocate", f"mail-{number}", sku, 1_000) is None

    eventually(lambda: len(module_mail.mails) == len(skus), 60, "a mail each")

    for mail in module_mail.mails.all():
        assert mail["To"] == "stock@example.com"
        assert mail["Bcc"] is None
        assert mail["Cc"] is None
        assert str(mail["Subject"]).startswith("Out of stock for ")


def _outcome(answer: AsyncResult) -> str:
    try:
        answer.get(timeout=60)
    except Exception as error:  # noqa: BLE001  the test examines any error
        return type(error).__name__
    return "done"
