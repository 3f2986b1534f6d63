"""Stock to allocate from, and lines to allocate."""

from __future__ import annotations

import random

from benchmarks.peers.peer import Line
from benchmarks.servers import Servers

SKUS = 1000

STOCK = """
INSERT INTO products (sku) SELECT 'SKU-' || to_char(n, 'FM0000') FROM generate_series(0, %(skus)s - 1) n;
INSERT INTO batches (reference, sku, purchased_quantity)
SELECT 'batch-' || sku, sku, 2000000000 FROM products"""


def fill(servers: Servers) -> None:
    """Create one batch per SKU that does not run out."""
    with servers.sql.cursor() as run:
        run.execute(STOCK, {"skus": SKUS})


def lines(name: str, count: int, skus: int = SKUS, seed: int = 1) -> list[Line]:
    """Return lines for random SKUs; `name` makes their order ids unique."""
    chance = random.Random(seed)
    return [Line(f"{name}-{n}", f"SKU-{chance.randrange(skus):04}") for n in range(count)]
