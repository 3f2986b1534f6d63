"""The report of a re-run."""

from __future__ import annotations

from collections.abc import Sequence

from messaging.worker.dispatcher import RerunTurn


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
