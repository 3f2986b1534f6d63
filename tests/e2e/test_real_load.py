"""6,000 real order lines through several worker processes, also while workers are killed."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from celery.result import AsyncResult

from local.waiting import eventually
from tests.e2e.conftest import Backend, Broker, Shop

DATA = Path(__file__).parents[2] / "data"

INVARIANTS = {
    "batches that promised more than they have":
        "SELECT reference FROM batches WHERE allocated_quantity > purchased_quantity",
    "batches whose allocated quantity differs from the sum of their lines":
        "SELECT reference FROM batches WHERE allocated_quantity <>"
        " (SELECT coalesce(sum(qty), 0) FROM allocations WHERE batch_reference = reference)",
    "lines allocated twice":
        "SELECT orderid, sku, qty FROM allocations GROUP BY 1, 2, 3 HAVING count(*) > 1",
}  # fmt: skip


def rows(name: str) -> list[dict[str, str]]:
    with (DATA / name).open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def stock(broker: Broker, backend: Backend) -> None:
    """All purchases of the file, created by a worker."""
    shop, worker = Shop(broker), backend.worker("purchases")
    batches = [
        shop.send("create_batch", row["ref"], row["sku"], int(row["qty"]), row["eta"] or None)
        for row in rows("batches.csv")
    ]
    assert outcomes(shop, batches) == {"None": len(batches)}
    worker.stop()
    shop.close()


def send_orders(shop: Shop, orders: list[dict[str, str]]) -> list[AsyncResult]:
    return [shop.send("allocate", row["orderid"], row["sku"], int(row["qty"])) for row in orders]


def outcomes(shop: Shop, results: list[AsyncResult], timeout: float = 240) -> Counter[str]:
    """Wait for every result and count the outcomes."""
    metas = shop.app.backend.get_many({result.id for result in results}, timeout=timeout)
    return Counter(_outcome(meta) for _, meta in metas)


def _outcome(meta: dict[str, Any]) -> str:
    if meta["status"] == "SUCCESS":
        return "allocated" if meta["result"] else "None"
    return f"{type(meta['result']).__name__}: {meta['result']}"


def broken_invariants(backend: Backend) -> dict[str, list[tuple[Any, ...]]]:
    return {what: found for what, query in INVARIANTS.items() if (found := backend.sql(query))}


@pytest.mark.timeout(400)
@pytest.mark.usefixtures("stock")
def test_every_line_of_a_day_is_answered_once_by_several_workers_at_once(shop, backend):
    orders = rows("orders.csv")[:3000]
    zeros = sum(int(row["qty"]) == 0 for row in orders)
    workers = [backend.worker(f"w{n}") for n in range(2)]

    counted = outcomes(shop, send_orders(shop, orders))

    for worker in workers:
        worker.stop()
    assert zeros > 0
    assert counted["InvalidMessage: qty must be at least 1"] == zeros
    assert counted["allocated"] + counted["None"] == len(orders) - zeros
    assert broken_invariants(backend) == {}


@pytest.mark.timeout(400)
@pytest.mark.usefixtures("stock")
def test_a_worker_killed_repeatedly_under_load_loses_and_doubles_nothing(shop, backend):
    orders = [row for row in rows("orders.csv")[3000:] if int(row["qty"])]
    before = backend.sql("SELECT count(*) FROM inbox")[0][0]
    worker = backend.worker("victim")

    sent = send_orders(shop, orders)
    for round_ in range(1, 5):
        eventually(
            lambda done=round_ * 400: backend.sql("SELECT count(*) FROM inbox")[0][0] - before >= done,
            60,
            f"{round_ * 400} commands done before the kill",
        )
        worker.kill()
        worker.start()
    counted = outcomes(shop, sent)

    worker.stop()
    assert counted["allocated"] + counted["None"] == len(orders)
    assert broken_invariants(backend) == {}
    assert backend.sql("SELECT count(*) FROM inbox")[0][0] - before == len(orders)
