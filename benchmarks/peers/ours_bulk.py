"""This backend with a hundred lines in each message."""

from __future__ import annotations

from benchmarks.peers.ours_solo import solo

peer = solo("ours_bulk", "this backend, 100 lines a message", 12, bulk=True)
