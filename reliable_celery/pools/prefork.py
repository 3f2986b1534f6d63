"""Celery's pool of child processes, which stops as soon as the children have finished what they are doing.

Setting: `worker_pool = "reliable_celery.pools.prefork:TaskPool"`, which `celery worker --pool=prefork` then
means as well. (docs/adr/033)
"""

from __future__ import annotations

from multiprocessing.connection import wait

from billiard.pool import TERMINATE
from celery.concurrency import asynpool, prefork

from reliable_celery.pools.shared_memory import keep_shared

LOOK_EVERY_S = 0.05  # seconds


class ResultHandler(asynpool.ResultHandler):
    """Listens to the children until the last of them has gone."""

    def on_stop_not_started(self) -> None:
        """Hear what jobs the pool has still to say, then what those say that it forgot.

        A worker that stops under load forgets the jobs that it has handed to a child and not yet seen begun.
        The child does them, and waits up to 30 s for somebody to hear that it has.
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
    """Celery's, with our result handler."""

    ResultHandler = ResultHandler


class TaskPool(prefork.TaskPool):
    """What `worker_pool` names; Celery calls this module's pool `prefork`, as its own."""

    Pool = AsynPool

    def on_start(self) -> None:
        """Start the children, which share what was imported before for as long as they only read it."""
        keep_shared()
        super().on_start()
