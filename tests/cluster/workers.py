"""A worker for these tests."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from local.processes import programs
from local.processes.child import Child
from local.waiting import eventually


@contextmanager
def ready_worker(folder: Path, env: Mapping[str, str]) -> Iterator[Child]:
    """Run a worker, from when it is ready to the end of the block."""
    child = programs.commands_worker(folder, env, 1)
    child.start()
    try:
        eventually(lambda: " ready." in child.log_text(), 60, "the worker")
        yield child
    finally:
        child.stop()
