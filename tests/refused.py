"""Workers that refuse to start."""

from __future__ import annotations

from local.processes.child import Child
from local.waiting import eventually


def log_of_refused(worker: Child) -> str:
    """Start a worker that refuses to run; return what it logged until its end."""
    worker.start()
    try:
        eventually(lambda: not worker.running, 60, f"the end of {worker.name}")
    finally:
        worker.kill()
    return worker.log_text()
