"""Celery's beat, whose tasks go on when the clock is set back."""

from __future__ import annotations

from typing import Any

from celery.beat import PersistentScheduler, ScheduleEntry
from celery.utils.time import maybe_make_aware


class Scheduler(PersistentScheduler):
    """Sends a task one interval after its last run, but never later than one interval from now.

    Celery compares the time of the last run, which it keeps in a file, with the wall clock. If that was
    ahead then (a machine that boots with a wrong clock, until NTP corrects it), it would send nothing for as
    long, also after a restart.
    """

    def tick(self, *args: Any, **kwargs: Any) -> float:
        """Send what is due; return the seconds until the next tick. A last run in the future was just now."""
        ahead = [entry for entry in self.schedule.values() if _is_ahead(entry)]
        for entry in ahead:
            entry.last_run_at = entry.default_now()
        if ahead:
            self._heap = None  # it has the times of the next runs
        seconds: float = super().tick(*args, **kwargs)
        return seconds


def _is_ahead(entry: ScheduleEntry) -> bool:
    ahead: bool = maybe_make_aware(entry.last_run_at) > maybe_make_aware(entry.default_now())
    return ahead
