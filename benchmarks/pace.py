"""A sender that keeps its pace, in a process of its own, and a listener to the answers.

A command's id begins with the time when it was due to be sent, so a sender that falls behind makes its
commands late, and the listener needs nothing but the id.
"""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Self

import redis

RESULTS = "celery-task-meta-"

#: Sends one command: (task id, which is the order id too, SKU).
Send = Callable[[str, str], object]


def send(send_one: Send, skus: Sequence[str], rate: float, count: int) -> None:
    """Send at this rate, each command when it is due, for these SKUs in turn."""
    start = time.monotonic()
    for number in range(count):
        due = start + number / rate
        time.sleep(max(0.0, due - time.monotonic()))
        send_one(f"{due:.5f}-{number}", skus[number % len(skus)])


@contextmanager
def sending(
    send_one: Send, skus: Sequence[str], rate: float, count: int
) -> Iterator[multiprocessing.process.BaseProcess]:
    """Run `send` in a process of its own; it is killed at the end."""
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=send, args=(send_one, skus, rate, count), daemon=True)
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()


class Listener:
    """Hears when results arrive, as a waiting sender does; a context manager."""

    def __init__(self, url: str) -> None:
        self._client = redis.Redis.from_url(url)
        self._pubsub = self._client.pubsub(ignore_subscribe_messages=True)  # type: ignore[no-untyped-call]
        self._times: list[float] = []
        self._over = False
        self._thread = threading.Thread(target=self._listen, daemon=True)

    def __enter__(self) -> Self:
        """Start listening."""
        self._pubsub.psubscribe(f"{RESULTS}*")
        self._pubsub.get_message(timeout=5)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop listening."""
        self._over = True
        self._thread.join()
        self._pubsub.close()
        self._client.close()

    def __len__(self) -> int:
        """Count the answers since the last `take`."""
        return len(self._times)

    def take(self) -> list[float]:
        """Return the milliseconds from due to answered, of the answers since the last call."""
        times, self._times = self._times, []
        return times

    def _listen(self) -> None:
        while not self._over:
            message = self._pubsub.get_message(timeout=0.1)
            if message is not None:
                due = message["channel"].decode().removeprefix(RESULTS).partition("-")[0]
                if "." in due:  # else an answer to a turn before, whose worker was stopped
                    self._times.append((time.monotonic() - float(due)) * 1000)
