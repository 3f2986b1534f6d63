"""A task that is ended by its time limit comes back, as one does whose worker died."""

from __future__ import annotations

import logging
from typing import Any

import celery
from celery.worker.request import Request as CeleryRequest
from celery.worker.state import task_ready

logger = logging.getLogger(__name__)


class Request(CeleryRequest):
    """A message in the worker's main process.

    At the time limit Celery tells the sender that the task failed, also where its work is committed and only
    the answer hangs. Ours gives the message back without a word: the inbox or the delivery row knows what was
    done, and what hangs each time is parked like what kills its worker each time.
    """

    def on_timeout(self, soft: bool, timeout: float) -> None:
        """Give the message back when its process is ended."""
        if soft:
            super().on_timeout(soft, timeout)
            return
        task_ready(self)
        logger.error("%s[%s] took longer than %s s; it is given back", self.name, self.id, timeout)
        self.reject(requeue=True)


class Task(celery.Task):
    """The base of every task: its messages are such requests."""

    abstract = True
    Request: Any = "messaging.worker.request:Request"
