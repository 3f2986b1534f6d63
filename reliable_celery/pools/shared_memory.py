"""Keep a pool's children sharing their parent's memory."""

from __future__ import annotations

import gc
from typing import Any

from celery import signals


def keep_shared() -> None:
    """Keep the memory of everything imported before a fork shared with the worker's children."""
    signals.worker_before_create_process.connect(_freeze)


def _freeze(**_: Any) -> None:
    """Exclude all current objects from garbage collection.

    A full collection writes to every object, so each process gets its own copy of all of them: some 20 MiB,
    at a moment that depends on the load.
    """
    gc.collect()
    gc.freeze()
