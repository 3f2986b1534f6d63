"""The file of purchases, and an independent count of who became a VIP and when."""

import csv
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

Order = dict[str, Any]  # the arguments of CreateOrder

COLUMNS = ("customer_id", "orderid", "date", "cds", "amount")


class NotPurchasesError(RuntimeError):
    """The file lacks expected columns."""


def read(file: Path) -> Iterator[Order]:
    """Yield the file's lines as orders, one at a time; invalid values are left for the shop to refuse.

    Raises:
        NotPurchasesError: naming the columns that are missing.
    """
    with file.open(newline="", encoding="utf-8") as lines:
        rows = csv.DictReader(lines)
        if missing := [name for name in COLUMNS if name not in (rows.fieldnames or ())]:
            raise NotPurchasesError(f"{file} has no column {', '.join(missing)}")
        for row in rows:
            yield {
                "orderid": row["orderid"],
                "customer_id": row["customer_id"],
                "placed_on": row["date"],
                "items": _whole(row["cds"]),
                "amount": _cents(row["amount"]),
            }


@dataclass
class Count:
    """An independent count in this process: the third order by date makes a VIP."""

    orders: dict[str, dict[str, date]] = field(default_factory=lambda: defaultdict(dict))

    def add(self, order: Order) -> None:
        """Record an order that was taken; a second line of the same order changes nothing."""
        self.orders[order["customer_id"]][order["orderid"]] = date.fromisoformat(order["placed_on"])

    @property
    def number_of_orders(self) -> int:
        """Return how many different orders there are."""
        return sum(map(len, self.orders.values()))

    def vips(self) -> dict[str, date]:
        """Return each VIP with the date of the third order."""
        return {
            customer: sorted(dates.values())[2] for customer, dates in self.orders.items() if len(dates) >= 3
        }


def growth(vips: dict[str, date]) -> list[tuple[date, int]]:
    """Return the number of VIPs at the end of each day on which it grew."""
    total, steps = 0, []
    for day, new in sorted(Counter(vips.values()).items()):
        total += new
        steps.append((day, total))
    return steps


def _whole(text: str) -> int | str:
    return int(text) if text.isascii() and text.isdecimal() else text


def _cents(text: str) -> int | str:
    try:
        cents = Decimal(text) * 100
        return int(cents) if cents == int(cents) else text
    except (InvalidOperation, ValueError, OverflowError):
        return text
