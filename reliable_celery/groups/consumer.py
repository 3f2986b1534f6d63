"""A consumer that runs requests that arrived together as groups."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from celery.concurrency.prefork import TaskPool as PreforkPool

from reliable_celery.groups.collecting import Groups
from reliable_celery.groups.prefork import PreforkGroups
from reliable_celery.groups.solo import SoloGroups
from reliable_celery.pools.solo import SoloConsumer


class GroupingConsumer(SoloConsumer):
    """Runs requests as groups where the pool allows it."""

    groups: Groups | None = None
    on_task_request: Callable[[Any], object]

    def open_groups(self, limit: int) -> Groups | None:
        """Let requests be run in groups of up to `limit`; None if they are not."""
        kind = self._kind()
        if limit < 2 or kind is None:  # one is no group
            return None
        groups = kind(self, limit)
        self.on_task_request = groups.on_task_request
        return groups

    def _kind(self) -> type[Groups] | None:
        if self.is_solo:
            return SoloGroups
        asynchronous = getattr(self.controller, "semaphore", None) is not None
        return PreforkGroups if asynchronous and isinstance(self.pool, PreforkPool) else None

    def on_close(self) -> None:
        """Forget requests that have not begun: the broker redelivers them."""
        self._forget_groups()
        super().on_close()

    def stop(self) -> None:
        """Forget them also when the worker stops: its event loop still makes its calls, without a pool."""
        self._forget_groups()
        super().stop()

    def _forget_groups(self) -> None:
        if self.groups is not None:
            self.groups.forget()
