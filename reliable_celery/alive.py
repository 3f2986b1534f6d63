"""A file that says that a worker's event loop turns, for a probe that tells a hung worker from a busy one.

Setting: `worker_alive_file`, its path; comes with `reliable_celery.consumer:Consumer`. The file is touched
every `EVERY_S` seconds: by the event loop, which runs no task except in the solo pool, and while the worker
waits for its broker. An age of some 30 s, in the solo pool of more than a task may take, means hung.
"""

# mypy: disable-error-code="no-untyped-call, no-untyped-def"
# Celery is untyped.

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from celery import bootsteps
from celery.worker.consumer.connection import Connection

logger = logging.getLogger(__name__)

EVERY_S = 5.0


class Alive(bootsteps.StartStopStep):
    """Touches the file while the event loop turns."""

    requires = (Connection,)

    def __init__(self, c: Any, **kwargs: Any) -> None:
        self._timer: Any = None
        super().__init__(c, **kwargs)

    def include_if(self, c: Any) -> bool:
        """Return whether a file is named."""
        return bool(c.app.conf.get("worker_alive_file"))

    def start(self, c: Any) -> None:
        """Begin with the connection to the broker."""
        touch(c.app)
        self._timer = c.timer.call_repeatedly(EVERY_S, touch, (c.app,))

    def stop(self, _c: Any) -> None:
        """End with it."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def touch(app: Any) -> None:
    """Touch an app's file, if it names one."""
    name = app.conf.get("worker_alive_file")
    if name:
        try:
            Path(name).touch()
        except OSError as error:
            logger.warning("Cannot touch %s: %s", name, error)


def touching(app: Any, callback: Callable[[], object] | None) -> Callable[[], object]:
    """Return a callback that also touches the file."""

    def touch_and_call() -> None:
        touch(app)
        if callback is not None:
            callback()

    return touch_and_call
