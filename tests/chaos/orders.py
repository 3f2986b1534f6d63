"""A shop's commands: mostly orders, some stock, corrections and invalid ones, and bursts for new products."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

SKUS = 6  # few, so that orders compete for the same product
Order = tuple[str, dict[str, Any]]  # task and fields


class Orders:
    """An endless stream of commands; each name in it begins with `prefix`."""

    def __init__(self, rng: random.Random, prefix: str) -> None:
        self.rng, self.prefix = rng, prefix
        self._batches: list[str] = []
        self._lines: list[dict[str, Any]] = []
        self._number = self._rushes = 0

    def __iter__(self) -> Iterator[Order]:
        """Yield commands, first a batch of each product."""
        while True:
            self._number += 1
            roll = self.rng.random()
            if roll < 0.12 or self._number <= SKUS:
                yield self._purchase()
            elif roll < 0.20:
                ref = self.rng.choice(self._batches)
                yield "change_batch_quantity", {"ref": ref, "qty": self.rng.randint(0, 40)}
            elif roll < 0.23:
                yield "allocate", self._line(qty=0)
            elif roll < 0.26 and self._lines:
                yield "allocate", self.rng.choice(self._lines)
            else:
                self._lines.append(self._line(self.rng.randint(1, 6)))
                yield "allocate", self._lines[-1]

    def rush(self) -> list[Order]:
        """Return a new product's batch of 5 that becomes 6, and two lines that do not both fit, shuffled."""
        self._rushes += 1
        sku = f"{self.prefix}-new{self._rushes}"
        commands: list[Order] = [
            ("create_batch", {"ref": f"b-{sku}", "sku": sku, "qty": 5, "eta": None}),
            ("allocate", {"orderid": f"{sku}-o1", "sku": sku, "qty": 5}),
            ("allocate", {"orderid": f"{sku}-o2", "sku": sku, "qty": 5}),
            ("change_batch_quantity", {"ref": f"b-{sku}", "qty": 6}),
        ]
        return self.rng.sample(commands, len(commands))

    def _purchase(self) -> Order:
        first = self._number <= SKUS
        sku = f"{self.prefix}-sku{self._number - 1}" if first else self._sku()
        self._batches.append(f"{self.prefix}-b{self._number}")
        eta = self.rng.choice([None, "2026-01-31", "2026-02-28"])
        fields = {"ref": self._batches[-1], "sku": sku, "qty": self.rng.randint(5, 40), "eta": eta}
        return "create_batch", fields

    def _line(self, qty: int) -> dict[str, Any]:
        return {"orderid": f"{self.prefix}-o{self._number}", "sku": self._sku(), "qty": qty}

    def _sku(self) -> str:
        return f"{self.prefix}-sku{min(self.rng.randrange(SKUS), self.rng.randrange(SKUS))}"


def another(task: str, fields: dict[str, Any]) -> Order:
    """Return a command that differs in its quantity."""
    return task, {**fields, "qty": fields["qty"] + 1}
