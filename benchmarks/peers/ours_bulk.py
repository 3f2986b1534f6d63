"""This backend with a hundred lines per message."""

from __future__ import annotations

from collections.abc import Sequence

from celery import Celery

from benchmarks.peers.ours import GROUPS
from benchmarks.peers.ours_solo import solo
from benchmarks.peers.peer import Line

LINES_PER_MESSAGE = 100
#: Of messages, so that all workers get some.
PREFETCHES = {"prefetch 1": 1, "prefetch 4": 4} | dict.fromkeys(GROUPS, 1)


def publish_bulk(lines: Sequence[Line], sender: Celery) -> None:
    """Send a hundred lines per message; each still has its own result."""
    for start in range(0, len(lines), LINES_PER_MESSAGE):
        commands = [
            ["allocation.allocate", {"orderid": line.orderid, "sku": line.sku, "qty": line.qty}]
            for line in lines[start : start + LINES_PER_MESSAGE]
        ]
        sender.send_task("allocation.many", (commands,), queue="allocation.commands")


peer = solo("ours_bulk", "this backend, 100 lines a message", 12, publish_bulk, PREFETCHES)
