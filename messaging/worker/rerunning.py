"""Re-runs that go on until they end: the relay takes their steps, and so may a terminal or Flower."""

from __future__ import annotations

import time
from collections.abc import Sequence
from math import ceil

from messaging.errors import describe
from messaging.postgres.reruns import BulkRerun, Progress
from messaging.worker.dispatcher import Dispatcher, logger
from messaging.worker.waking import LOOK_S, longest_run_s


def carry_on(dispatcher: Dispatcher) -> int:
    """Take steps of all re-runs, only as fast as workers take messages; return how many were sent."""
    longest_s = longest_run_s(dispatcher.runtime)
    sent, until = 0, time.monotonic() + longest_s
    while reruns := dispatcher.runtime.bulk_reruns.under_way():
        room = _room(dispatcher)
        if room is None:
            break
        moved = _steps(dispatcher, reruns, room)
        sent += moved
        if not moved and room > 0:  # canaries, or a rate, need more time
            break
        if time.monotonic() > until:
            dispatcher.go_on_later("relay", longest_s)
            break
        if room <= 0:
            time.sleep(LOOK_S)
    return sent


def _steps(dispatcher: Dispatcher, reruns: Sequence[BulkRerun], room: int) -> int:
    moved, each = 0, ceil(room / len(reruns))
    for rerun in reruns:
        try:
            moved += len(_step(dispatcher, rerun.id, each).deliveries)
        except Exception as error:  # noqa: BLE001  the others must go on
            logger.warning("Re-run %d does not go on: %s", rerun.id, describe(error))
    return moved


def take_step(dispatcher: Dispatcher, number: int) -> Progress:
    """Go on with one re-run as far as there is room, and return where it stands.

    Raises:
        NotUnderWay: no re-run has this number.
    """
    return _step(dispatcher, number, _room(dispatcher) or 0)


def _step(dispatcher: Dispatcher, number: int, room: int) -> Progress:
    progress = dispatcher.runtime.bulk_reruns.step(number, room)
    dispatcher.send_known(progress.deliveries)
    return progress


def _room(dispatcher: Dispatcher) -> int | None:
    """Return how many more messages the events queue may hold; None if the broker does not answer."""
    try:
        return max(0, dispatcher.room())
    except Exception as error:  # noqa: BLE001  of any broker
        logger.warning("Re-runs go on later, the broker does not answer: %s", describe(error))
        return None
