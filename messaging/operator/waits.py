"""Why a delivery waits, as a text."""

from __future__ import annotations

from collections.abc import Sequence

from messaging.delivery import Delivery, Status, Waits
from messaging.operator.pausing import shown
from messaging.postgres.pauses import Pause, first_stop
from messaging.project import Project


def why(project: Project, row: Delivery, pauses: Sequence[Pause]) -> str:
    """Return why a delivery waits; empty if it does not."""
    if row.status is not Status.WAITING:
        return ""
    if row.waits_for == Waits.PAUSE:
        pause = first_stop(pauses, project.all_names(row.handler), row.event_type)
        return f"paused: {shown(pause)}" if pause else "was paused; the relay sends it soon"
    return f"waits for {row.waits_for}"
