"""The reports of re-runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from messaging.operator.deliveries import DeliveryQueries
from messaging.operator.pausing import shown
from messaging.postgres.audit import UNDER_WAY
from messaging.postgres.breakers import stop_of
from messaging.postgres.filters import DeliveryFilter
from messaging.postgres.pauses import first_stop
from messaging.postgres.reruns import BulkRerun, Progress, WrongRerun
from messaging.project.runtime import Runtime
from messaging.worker.dispatcher import Dispatcher, RerunTurn

#: Seconds that those have which are tried first.
CANARY_S = 60.0

#: How long ago a re-run that has ended may have begun to be listed: one of many may take hours.
LISTED = timedelta(days=1)


def outcome(turns: Sequence[RerunTurn]) -> str:
    """Return how many deliveries were requeued, and why some of them were not sent."""
    put_back = sum(len(turn.deliveries) for turn in turns)
    sent = sum(turn.sent for turn in turns)
    waiting = sum(turn.waiting for turn in turns)
    if waiting:
        return (
            f"{put_back:,} requeued, {sent:,} of them sent. The relay sends {waiting:,} as fast as workers"
            " take them, so that new events are not delayed."
        )
    if sent == put_back:
        return f"{put_back:,} requeued and sent."
    return (
        f"{put_back:,} requeued, {sent:,} of them sent. The relay will send the rest once the broker is back;"
        " those whose handler this release lacks have failed again."
    )


def begin(
    dispatcher: Dispatcher,
    chosen: DeliveryFilter,
    actor: str,
    limit: int | None = None,
    *,
    canary: int = 0,
    canary_s: float = CANARY_S,
    rate: float | None = None,
    before: datetime | None = None,
) -> Progress:
    """Begin a re-run that goes on until it ends; see `BulkReruns.start`.

    Raises:
        WrongRerun: some are to be tried first, but their handler is paused or stopped by its breaker, or
            another action holds some of them.
    """
    runtime = dispatcher.runtime
    if canary:
        _require_going(runtime, chosen)
    begun = runtime.bulk_reruns.start(
        chosen, actor, limit, canary=canary, canary_s=canary_s, rate=rate, before=before
    )
    dispatcher.send_known(begun.deliveries)
    return begun


def _require_going(runtime: Runtime, chosen: DeliveryFilter) -> None:
    pauses, breakers = runtime.pauses.active(), runtime.breakers.stopped()
    if not pauses and not breakers:
        return
    for event, handler in DeliveryQueries(runtime.engine).count_failed(chosen):
        names = runtime.project.all_names(handler)
        if pause := first_stop(pauses, names, event):
            raise WrongRerun(f"None can be tried first, they would wait: {shown(pause)}. Resume it before")
        stopped = stop_of(breakers, names)
        if stopped is not None and stopped.is_open:
            raise WrongRerun(f"None can be tried first, they would wait: {stopped}. Close its breaker before")


@dataclass(frozen=True)
class Line:
    """A re-run, under way or ended, as it is listed."""

    id: int
    at: datetime
    actor: str
    what: str
    count: int
    expected: int | None  # None if it has ended
    state: str
    may_stop: bool = False


def listed(runtime: Runtime, limit: int) -> list[Line]:
    """Return the re-runs that are under way, then those of the last day that have ended, the latest first.

    Those of one delivery are left out: its page shows them, and a few would hide how one of many has ended.
    """
    under_way = runtime.bulk_reruns.under_way()
    known = {one.id for one in under_way}
    since = datetime.now(UTC) - LISTED
    entries = runtime.audit.find(limit + len(known), action="rerun", since=since, of_many=True)
    ended = [one for one in entries if one.id not in known]
    return [
        *(
            Line(one.id, one.at, one.actor, _filter(one), one.count, one.expected, _state(one), True)
            for one in under_way
        ),
        *(
            Line(one.id, one.at, one.actor, one.subject, one.count or 0, None, one.outcome or "")
            for one in ended[:limit]
        ),
    ]


def _filter(rerun: BulkRerun) -> str:
    try:
        return str(rerun.chosen)
    except ValueError as error:
        return str(error)


def _state(rerun: BulkRerun) -> str:
    if rerun.canary and rerun.canary_until:
        until = rerun.canary_until.astimezone(UTC).strftime("%H:%M:%SZ")
        return f"the first {len(rerun.canary):,} are tried until {until}"
    return UNDER_WAY if rerun.rate is None else f"{UNDER_WAY}, {rerun.rate:g} per second"


def standing(progress: Progress) -> str:
    """Return where a re-run stands, as a sentence."""
    if progress.is_under_way:
        return f"Re-run {progress.id} is under way: {progress.count:,} requeued so far."
    if progress.outcome != "done":
        return f"Re-run {progress.id} {progress.outcome}. {progress.count:,} requeued; the rest is unchanged."
    if not progress.count:
        return "None of these deliveries has failed; nothing was re-run."
    return f"{progress.count:,} requeued."
