"""Celery's prefork pool, but it stops as soon as the children have finished their tasks.

Setting: `worker_pool = "reliable_celery.pools.prefork:TaskPool"`; `celery worker --pool=prefork` then uses it
as well. (docs/adr/033)
"""

from __future__ import annotations

from multiprocessing.connection import wait

from billiard.pool import TERMINATE
from celery.concurrency import asynpool, prefork

from reliable_celery.pools.shared_memory import keep_shared

LOOK_EVERY_S = 0.05  # seconds


class ResultHandler(asynpool.ResultHandler):
    """Listens to the children until the last of them has exited."""

    def on_stop_not_started(self) -> None:
        """Read the results of the jobs that the pool knows, then of those that it forgot.

        A worker that stops under load forgets jobs that a child has received but not yet reported as started.
        The child runs them, and waits up to 30 s for the parent to read its report.
        """
        super().on_stop_not_started()
        listening = set(self.fileno_to_outq)
        while listening and self._state != TERMINATE:
            children = {
                fd: child
                for fd, child in self.fileno_to_outq.items()
                if fd in listening and child._is_alive()
            }
            listening = set(children)
            readable = wait([child.outq._reader for child in children.values()], LOOK_EVERY_S)
            for fd, child in children.items():
                if child.outq._reader in readable:
                    self._flush_outqueue(fd, listening.discard, self.fileno_to_outq, self.on_state_change)


class AsynPool(asynpool.AsynPool):
    """Celery's pool with our result handler."""

    ResultHandler = ResultHandler


class TaskPool(prefork.TaskPool):
    """The pool that `worker_pool` names; Celery shows it as `prefork`, like its own."""

    Pool = AsynPool

    def on_start(self) -> None:
        """Start the children, which share the memory of imported modules as long as they only read it."""
        keep_shared()
        super().on_start()
