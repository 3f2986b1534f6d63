"""Each module does the same job with another tool; its `peer` defines how to run it and fill its queue."""

from __future__ import annotations

from importlib import import_module

from benchmarks.peers.peer import Peer

#: The peers in the comparison of commands per second, in the order of the table.
NAMES = (
    "ours",
    "ours_solo",
    "ours_bulk",
    "plain_celery",
    "plain_celery_solo",
    "chapter10",
    "chapter10_solo",
    "dramatiq_peer",
    "rq_peer",
    "huey_peer",
    "taskiq_peer",
    "procrastinate_peer",
)


def load(name: str) -> Peer:
    """Import a peer; its addresses must already be in the environment."""
    peer: Peer = import_module(f"benchmarks.peers.{name}").peer
    return peer
