"""The commands that make up a running backend besides its servers: workers, beat, Flower."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from local.child import Child
from local.ports import LOOPBACK

WORK_QUEUES = "allocation.commands,allocation.events"
HOUSEKEEPING_QUEUE = "allocation.housekeeping"

#: Seconds that a worker gets to finish or hand back what it runs.
_WORKER_STOP_TIMEOUT = 15.0


def celery(name: str, folder: Path, env: Mapping[str, str], *arguments: str, stop_timeout: float) -> Child:
    """Return `celery -A tasks <arguments>` as a child that logs to `<name>.log`."""
    command = [sys.executable, "-m", "celery", "-A", "tasks", *arguments]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", **env}
    return Child(name, command, log=folder / f"{name}.log", env=environment, stop_timeout=stop_timeout)


def worker(
    name: str, queues: str, folder: Path, env: Mapping[str, str], concurrency: int, *extra: str
) -> Child:
    """Return a worker whose node is called `<name>@<host>`."""
    # SIGTERM then hands running tasks back in bounded time instead of waiting for each to end.
    bounded = {**env, "REMAP_SIGTERM": "SIGQUIT"}
    arguments = (f"--queues={queues}", f"--hostname={name}@%h", f"--concurrency={concurrency}")
    return celery(
        name, folder, bounded, "worker", "--loglevel=INFO", *arguments, *extra,
        stop_timeout=_WORKER_STOP_TIMEOUT,
    )  # fmt: skip


def commands_worker(folder: Path, env: Mapping[str, str], concurrency: int, *extra: str) -> Child:
    """Return the worker that runs commands and event handlers."""
    return worker("commands", WORK_QUEUES, folder, env, concurrency, *extra)


def housekeeping_worker(folder: Path, env: Mapping[str, str]) -> Child:
    """Return the small worker of relay, re-run and prune, which no backlog of the others can starve."""
    return worker("housekeeping", HOUSEKEEPING_QUEUE, folder, env, 1)


def beat(folder: Path, env: Mapping[str, str]) -> Child:
    """Return the clock; its own process, so that a killed worker leaves no second one behind."""
    arguments = ("--loglevel=INFO", f"--schedule={folder / 'beat'}", "--pidfile=")
    return celery("beat", folder, env, "beat", *arguments, stop_timeout=5.0)


def flower(folder: Path, env: Mapping[str, str], port: int) -> Child:
    """Return the operators' view, on loopback only, so its API may answer without a login."""
    with_api = {**env, "FLOWER_UNAUTHENTICATED_API": "true"}
    arguments = (f"--port={port}", f"--address={LOOPBACK}")
    return celery("flower", folder, with_api, "flower", *arguments, stop_timeout=5.0)
