"""One attempt at a delivery in its own process, for handlers that kill their process.

python -m tests.integration.one_attempt DATABASE_URL DELIVERY_ID die|die_slowly first|redelivered
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from allocation.domain.events import OutOfStock
from local import ROOT
from messaging.worker.app import MessagingApp
from tests.integration.outbox import app_on, receive

HANDLER = "handle_oddly"


def app_with(database_url: str, behaviour: Callable[..., None]) -> Iterator[MessagingApp]:
    """Return an app whose only handler of `OutOfStock` does this; three attempts, two crashes."""

    def handle_oddly(event: OutOfStock, uow: Any) -> None:
        behaviour(event, uow)

    yield from app_on(
        database_url,
        events={OutOfStock: [handle_oddly]},
        event_max_retries=2,
        max_crashes=2,
        task_time_limit_s=10,
        smtp_timeout_s=5,
        relay_grace_s=1,
    )


def die(_event: OutOfStock, _uow: Any) -> None:
    """Kill this process."""
    os.kill(os.getpid(), signal.SIGKILL)


def die_slowly(_event: OutOfStock, uow: Any) -> None:
    """Kill this process during a statement, whose session survives it by seconds."""
    threading.Thread(target=uow.transaction.read, args=("SELECT pg_sleep(4)",), daemon=True).start()
    time.sleep(0.2)
    die(_event, uow)


BEHAVIOURS = {"die": die, "die_slowly": die_slowly}


def kills_its_process(database_url: str, delivery_id: str, behaviour: str, *, redelivered: bool) -> bool:
    """Handle the delivery's message in a separate process; return whether that was killed."""
    arguments = [database_url, delivery_id, behaviour, "redelivered" if redelivered else "first"]
    # Not forked: a fork of a process with threads may inherit a locked lock.
    done = subprocess.run(
        [sys.executable, "-m", "tests.integration.one_attempt", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode == -signal.SIGKILL


def main(database_url: str, delivery_id: str, behaviour: str, delivered: str) -> None:
    """Handle the message once."""
    for app in app_with(database_url, BEHAVIOURS[behaviour]):
        receive(app, delivery_id, HANDLER, redelivered=delivered == "redelivered")


if __name__ == "__main__":
    main(*sys.argv[1:])
