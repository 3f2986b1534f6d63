"""Loaded into a worker with `--include`: records when a follow-up is sent and when its handler starts."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from typing import Any

from celery import current_task, signals

from messaging.messages import Command

#: One file per process; lines of `sent|began <task id> <seconds since 1970>`.
FOLDER = Path(os.environ["BENCHMARK_PROBE_FOLDER"])


def note(what: str, task_id: str) -> None:
    """Write one line."""
    with (FOLDER / f"{os.getpid()}.probe").open("a") as file:
        file.write(f"{what} {task_id} {time.time()!r}\n")


@signals.before_task_publish.connect  # type: ignore[untyped-decorator]
def _sent(headers: dict[str, Any], **_: Any) -> None:
    """Called right after the commit, before the message is sent."""
    note("sent", headers["id"])


class Began(logging.Handler):
    """Catches the log line that precedes a handler's run."""

    def emit(self, record: logging.LogRecord) -> None:
        """Record the task's id; not a command's, which would cost the time that is measured."""
        handled = next(iter(record.args or ()), None)
        if record.msg.startswith("Handling") and current_task and not isinstance(handled, Command):
            note("began", current_task.request.id)


for name in ("messaging.bus", "benchmarks.peers.plain_celery"):
    logging.getLogger(name).addHandler(Began())
logging.getLogger("messaging.bus").setLevel(logging.DEBUG)
logging.getLogger("messaging.bus").propagate = False
