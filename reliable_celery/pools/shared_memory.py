"""A pool child shares its parent's memory for as long as neither writes on it."""

from __future__ import annotations

import gc
from typing import Any

from celery import signals


def keep_shared() -> None:
    """Have every worker of this process spare its children a copy of what was imported before the fork."""
    signals.worker_before_create_process.connect(_freeze)


def _freeze(**_: Any) -> None:
    """Take what lives now out of the garbage collector's rounds.

    A full round writes on every object, which gives each process its own copy of all of them: some 20 MiB
    that nobody asked for, at a moment that depends on the load.
    """
    gc.collect()
    gc.freeze()
