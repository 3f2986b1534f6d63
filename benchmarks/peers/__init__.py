"""Each module does the same job with another tool; `peer` in it says how to run and how to feed it."""

from __future__ import annotations

from importlib import import_module

from benchmarks.peers.peer import Peer

#: Whose worker takes part in the comparison of commands a second, in the order of the table.
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
    """Import a peer; its addresses must be in the environment by then."""
    peer: Peer = import_module(f"benchmarks.peers.{name}").peer
    return peer
