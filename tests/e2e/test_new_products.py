"""The first batch of a product, orders for it and a correction at once: a race for a missing row.

`RACE_SKUS=20000 pytest tests/e2e/test_new_products.py` runs it for longer.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from uuid import uuid4

import pytest

from allocation.client import Allocate, AllocationClient, ChangeBatchQuantity, CreateBatch
from messaging.messages import Command

SKUS = int(os.environ.get("RACE_SKUS", "400"))

WRONG = """
SELECT reference FROM batches LEFT JOIN (
    SELECT batch_reference, sum(qty) AS held FROM allocations GROUP BY 1
) lines ON batch_reference = reference
WHERE allocated_quantity <> coalesce(held, 0) OR coalesce(held, 0) > purchased_quantity"""


def rush(sku: str) -> list[Command]:
    """A batch of 5 that becomes one of 6, and two orders that do not both fit."""
    return [
        CreateBatch(f"b-{sku}", sku, 5),
        Allocate("o1", sku, 5),
        Allocate("o2", sku, 5),
        ChangeBatchQuantity(f"b-{sku}", 6),
    ]


@pytest.fixture(scope="module")
def broker(broker_of):
    """One kind of broker is enough: the race is in the database."""
    return broker_of("redis")


@pytest.fixture(scope="module")
def worker(backend) -> Iterator[None]:
    """Four processes that compete for the same new product."""
    child = backend.worker("commands", concurrency=4)
    yield
    child.stop()


@pytest.mark.slow
@pytest.mark.timeout(120 + SKUS // 20)
def test_no_batch_of_a_new_product_is_over_allocated(broker, backend, worker):
    run = uuid4().hex[:8]
    with AllocationClient(broker.broker_url, broker.result_backend_url, timeout_s=60) as client:
        sent = [client.delay(command) for number in range(SKUS) for command in rush(f"{run}-{number}")]
        while sent:
            sent.pop(0).get(propagate=False, timeout=60 + SKUS // 20)

    assert backend.sql(WRONG) == []
