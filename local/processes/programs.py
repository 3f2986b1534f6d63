"""The commands that make up a running backend besides its servers: migration, workers, beat, Flower."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from local import ROOT
from local.ports import LOOPBACK
from local.processes.child import Child, ChildFailedError
from local.service import ALLOCATION, Service

WORK_QUEUES = ALLOCATION.work_queues
HOUSEKEEPING_QUEUE = ALLOCATION.housekeeping_queue

#: Seconds that a worker gets to finish running tasks, and again to hand them back.
_WORKER_STOP_TIMEOUT = 12.0


def migrate(url: str, service: Service = ALLOCATION) -> None:
    """Apply the migrations to the database at `url`, as an operator does: `python -m allocation migrate`."""
    environment = {**os.environ, service.variable("database_url"): url}
    result = subprocess.run(
        [sys.executable, "-m", service.tool, "migrate"],
        env=environment, cwd=ROOT, check=False, text=True, capture_output=True, timeout=120,
    )  # fmt: skip
    if result.returncode != 0:
        raise ChildFailedError(
            f"the migration ended with status {result.returncode}:\n{result.stderr[-3000:]}"
        )


def celery(
    name: str, folder: Path, env: Mapping[str, str], *arguments: str, service: Service = ALLOCATION
) -> Child:
    """Return `celery -A <app> <arguments>` as a child that logs to `<name>.log`."""
    command = [sys.executable, "-m", "celery", "-A", service.app, *arguments]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", **env}
    return Child(name, command, log=folder / f"{name}.log", env=environment, stop_timeout=5.0)


def worker(
    name: str,
    queues: str,
    folder: Path,
    env: Mapping[str, str],
    concurrency: int,
    *extra: str,
    service: Service = ALLOCATION,
) -> Child:
    """Return a worker whose node is called `<name>@<host>`."""
    arguments = (f"--queues={queues}", f"--hostname={name}@%h", f"--concurrency={concurrency}")
    child = celery(name, folder, env, "worker", "--loglevel=INFO", *arguments, *extra, service=service)
    # The first signal lets running tasks end, the second hands back those that do not.
    child.stop_signals = (signal.SIGTERM, signal.SIGQUIT)
    child.stop_timeout = _WORKER_STOP_TIMEOUT
    return child


def commands_worker(
    folder: Path, env: Mapping[str, str], concurrency: int, *extra: str, service: Service = ALLOCATION
) -> Child:
    """Return the worker that runs commands and event handlers."""
    return worker("commands", service.work_queues, folder, env, concurrency, *extra, service=service)


def housekeeping_worker(folder: Path, env: Mapping[str, str], service: Service = ALLOCATION) -> Child:
    """Return the worker of relay, re-run and prune; a backlog of the other queues cannot starve it."""
    return worker("housekeeping", service.housekeeping_queue, folder, env, 1, service=service)


def beat(folder: Path, env: Mapping[str, str], service: Service = ALLOCATION) -> Child:
    """Return beat, in a process of its own, so that a killed worker does not leave a second one behind."""
    arguments = ("--loglevel=INFO", f"--schedule={folder / 'beat'}", "--pidfile=")
    return celery("beat", folder, env, "beat", *arguments, service=service)


def flower(folder: Path, env: Mapping[str, str], port: int, service: Service = ALLOCATION) -> Child:
    """Return Flower, on loopback only; its login is `FLOWER_BASIC_AUTH` in its environment."""
    arguments = (f"--port={port}", f"--address={LOOPBACK}")
    return celery("flower", folder, env, "flower", *arguments, service=service)
