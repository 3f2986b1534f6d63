"""A worker that stands still for a while."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from local.processes.child import Child


@contextmanager
def paused(worker: Child) -> Iterator[None]:
    """Pause a worker's main process until the end of the block."""
    os.kill(worker.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(worker.pid, signal.SIGCONT)
