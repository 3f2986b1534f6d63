"""Why deliveries wait, as texts."""

from __future__ import annotations

from collections.abc import Iterable

from messaging import delivery
from messaging.delivery import Delivery, Status
from messaging.operator.pausing import shown
from messaging.postgres.breakers import stop_of
from messaging.postgres.pauses import first_stop
from messaging.project.runtime import Runtime


class Waits:
    """What some deliveries wait for, read once for all of them."""

    def __init__(self, runtime: Runtime, rows: Iterable[Delivery]) -> None:
        self._project = runtime.project
        waiting = [row for row in rows if row.status is Status.WAITING]
        in_order = [row.id for row in waiting if row.waits_for == delivery.Waits.ORDER]
        self._pauses = runtime.pauses.active() if waiting else []
        self._breakers = runtime.breakers.stopped() if waiting else {}
        self._blockers = runtime.lanes.blockers(in_order) if in_order else {}

    def of(self, row: Delivery) -> str:
        """Return why a delivery waits; empty if it does not."""
        if row.status is not Status.WAITING:
            return ""
        match row.waits_for:
            case delivery.Waits.PAUSE:
                names = self._project.all_names(row.handler)
                pause = first_stop(self._pauses, names, row.event_type)
                return f"paused: {shown(pause)}" if pause else "was paused; the relay sends it soon"
            case delivery.Waits.ORDER:
                first = self._blockers.get(row.id)
                if first is None:
                    return "its turn has come; the relay sends it soon"
                return f"waits for its turn: {first.id}, the first of {first.key}, is {first.status}"
            case delivery.Waits.BREAKER:
                stopped = stop_of(self._breakers, self._project.all_names(row.handler))
                return (
                    f"breaker: {stopped}"
                    if stopped
                    else "was stopped by its breaker; the relay sends it soon"
                )
            case delivery.Waits.PLACE:
                return f"waits for a place{f' of {row.limit_key}' if row.limit_key else ''}"
            case delivery.Waits.RATE:
                return f"waits for its time, {_when(row)}"
            case delivery.Waits.TIME:
                return f"its handler said: not before {_when(row)}"
            case delivery.Waits.TURN:
                return "re-run; the relay sends it when workers have taken those before it"
        return f"waits for {row.waits_for}"


def _when(row: Delivery) -> str:
    return row.due_at.strftime("%Y-%m-%d %H:%M:%SZ") if row.due_at else "later"
