"""Another team's app on our Redis database: stock Celery, its own queue, tasks with long countdowns.

Its worker is `celery -A tests.chaos.neighbour worker`, with the broker's address in NEIGHBOUR_BROKER.
"""

# mypy: disable-error-code="no-untyped-call, untyped-decorator"
# Celery is untyped.

from __future__ import annotations

import os
import random
import re
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

from celery import Celery
from kombu.exceptions import OperationalError

from local.processes.child import Child

QUEUE = "neighbour"
EACH_ROUND = 3  # tasks
LATE_S = 20.0  # a task is lost if it is later than this

app = Celery("neighbour", set_as_current=False)
app.conf.update(
    broker_url=os.environ.get("NEIGHBOUR_BROKER"),
    broker_connection_retry_on_startup=True,
    broker_connection_max_retries=None,
    task_default_queue=QUEUE,
    task_acks_late=True,
    task_ignore_result=True,
)


@app.task(name="neighbour.run")
def run(number: int) -> int:
    """Write a line to the log."""
    return number


class Neighbour:
    """Its worker, and the tasks that it must run once each."""

    def __init__(self, broker_url: str, folder: Path, wait_s: float) -> None:
        """`wait_s` is the shortest countdown of its tasks."""
        self.wait_s = wait_s
        self.worker = Child(
            "neighbour",
            [sys.executable, "-m", "celery", "-A", __name__, "worker", "-n", "neighbour@%h", "-c1", "-lINFO"],
            log=folder / "neighbour.log",
            env={**os.environ, "NEIGHBOUR_BROKER": broker_url},
        )
        self._sender = Celery("neighbours-sender", broker=broker_url, set_as_current=False)
        self._sent: dict[str, float] = {}  # due times in monotonic seconds

    def send(self, rng: random.Random) -> None:
        """Send some tasks that are due in a later round."""
        for number in range(EACH_ROUND):
            name, countdown = str(uuid4()), self.wait_s + rng.uniform(0, 10)
            with suppress(OperationalError):
                options = {"queue": QUEUE, "countdown": countdown, "task_id": name, "retry": False}
                self._sender.send_task("neighbour.run", (number,), **options)
                self._sent[name] = time.monotonic() + countdown

    def forget(self) -> None:
        """Stop watching all tasks: the broker failed, and stock Celery may lose or repeat them."""
        self._sent.clear()

    def lost(self) -> list[str]:
        """Return the overdue tasks that have not run."""
        now, runs = time.monotonic(), self._runs()
        late = [name for name, due in self._sent.items() if now > due + LATE_S and not runs[name]]
        return [f"a neighbour's task {self._told(name)} did not run" for name in late]

    def doubled(self) -> list[str]:
        """Return the tasks that ran more than once."""
        runs = self._runs()
        more = [name for name in self._sent if runs[name] > 1]
        return [f"a neighbour's task {self._told(name)} ran {runs[name]} times" for name in more]

    def _told(self, name: str) -> str:
        """Return a task's name and stop watching it: each is reported once."""
        del self._sent[name]
        return name

    def close(self) -> None:
        """Close the sender's connections."""
        self._sender.close()

    def _runs(self) -> Counter[str]:
        log = self.worker.log.read_text(errors="replace") if self.worker.log.exists() else ""
        return Counter(re.findall(r"\[([0-9a-f-]{36})\] succeeded", log))
