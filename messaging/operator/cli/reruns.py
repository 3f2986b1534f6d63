"""`deliveries rerun` and `deliveries discard`: actions on many deliveries at once."""

from __future__ import annotations

import time
from typing import Any
from uuid import UUID

import click

from messaging.delivery import Delivery, Status
from messaging.operator.cli.deliveries import deliveries
from messaging.operator.cli.interrupts import between_turns
from messaging.operator.cli.long_reruns import rerun_after_canary
from messaging.operator.cli.options import REASON, chosen, filters, ids_argument, must_choose
from messaging.operator.cli.output import console, print_table, progress
from messaging.operator.cli.tool import REFUSED, Interrupted, Tool
from messaging.operator.deliveries import DeliveryQueries
from messaging.operator.reruns import CANARY_S, outcome
from messaging.postgres.filters import DeliveryFilter
from messaging.worker.dispatcher import RerunTurn

WAIT_STEP_S = 0.2

pass_tool = click.make_pass_decorator(Tool)


@deliveries.command(
    epilog="""Example:
  {prog} deliveries rerun 0198c6a2-0000-7000-8000-000000000000 --wait 30
  {prog} deliveries rerun --error "Connection refused" --since 2h --dry-run
  {prog} deliveries rerun --group 0123456789 --canary 5
  {prog} deliveries rerun --all --limit 5000 --rate 20

A delivery that is done or running is never re-run. Ctrl-C stops between two batches: deliveries that were
requeued will run, the rest stay failed. Run the same command again to continue. With --canary, the re-run
goes on in the housekeeping worker if this program dies; `reruns` lists it and `stop` ends it.""",
)
@ids_argument
@filters
@click.option("--all", "everything", is_flag=True, help="Every failed delivery, without a filter.")
@click.option("--dry-run", is_flag=True, help="Only show what would be re-run.")
@click.option("--limit", default=1000, show_default=True, type=click.IntRange(1), help="At most this many.")
@click.option(
    "--rate", type=click.FloatRange(min=0.1), metavar="PER_SECOND", help="At most this many per second."
)
@click.option(
    "--canary",
    type=click.IntRange(1),
    metavar="N",
    help="Re-run N at random first, and the others only if all of these succeed.",
)
@click.option(
    "--wait", "wait_s", type=float, metavar="SECONDS",
    help=f"How long to wait for the outcome; with --canary, for that of the first ones [{CANARY_S:g}].",
)  # fmt: skip
@pass_tool
def rerun(
    tool: Tool, /, ids: tuple[UUID, ...], everything: bool, dry_run: bool, limit: int, **options: Any
) -> None:
    """Re-run failed deliveries, by id or by filter, the earliest failures first."""
    rate, wait_s, canary = options.pop("rate"), options.pop("wait_s"), options.pop("canary")
    which = chosen(tool, ids, **options)
    must_choose(which, everything)
    counts = DeliveryQueries(tool.runtime.engine).count_failed(which)
    if dry_run:
        _say_what_would_happen(counts, limit, "re-run")
        return
    _say_what_is_left_alone(tool, ids)
    if canary:
        rerun_after_canary(tool, which, limit, canary, wait_s or CANARY_S, rate)
        _say_what_is_over(counts, limit)
        return
    turns = _rerun(tool, which, min(sum(counts.values()), limit), limit, rate)
    put_back = tuple(delivery.id for turn in turns for delivery in turn.deliveries)
    console().print(outcome(turns))
    _say_what_is_over(counts, limit)
    if wait_s is not None and put_back:
        _wait(tool, put_back, wait_s)
    if ids and not put_back:
        raise SystemExit(REFUSED)


def _rerun(
    tool: Tool, which: DeliveryFilter, expected: int, limit: int, rate: float | None
) -> list[RerunTurn]:
    turns: list[RerunTurn] = []
    done = 0
    with between_turns() as stop, progress() as bar:
        task = bar.add_task("re-running", total=expected)
        for turn in tool.dispatcher.rerun(which, tool.actor, limit, rate, stop.wait):
            turns.append(turn)
            done += len(turn.deliveries)
            bar.advance(task, len(turn.deliveries))
            if stop.is_set():
                break
    if stop.is_set() and done < expected:
        raise Interrupted(
            f"Interrupted: {done:,} of {expected:,} were requeued and will run, the others are still failed."
            " Run the same command again to continue."
        )
    return turns


def _say_what_would_happen(counts: dict[tuple[str, str], int], limit: int, verb: str) -> None:
    total = sum(counts.values())
    if counts:
        rows = ((f"{n:,}", event, handler) for (event, handler), n in counts.items())
        print_table(("failed", "event", "handler"), rows)
    capped = f"; --limit {limit} takes the earliest failures" if total > limit else ""
    console().print(f"{min(total, limit):,} of {total:,} would be {verb}{capped}.")


def _say_what_is_over(counts: dict[tuple[str, str], int], limit: int) -> None:
    if (over := sum(counts.values()) - limit) > 0:
        console().print(f"{over:,} more are still failed; raise --limit to include them.")


def _say_what_is_left_alone(tool: Tool, ids: tuple[UUID, ...]) -> None:
    known = {row.id: row for row in _rows(tool, tuple(map(str, ids)))} if ids else {}
    for delivery_id in map(str, ids):
        row = known.get(delivery_id)
        if row is None:
            console().print(f"There is no delivery {delivery_id}.")
        elif row.status is not Status.FAILED:
            console().print(f"{delivery_id} is {row.status}: left unchanged.")


def _rows(tool: Tool, ids: tuple[str, ...]) -> list[Delivery]:
    return DeliveryQueries(tool.runtime.engine).find(DeliveryFilter(ids=ids), limit=len(ids))


def _wait(tool: Tool, ids: tuple[str, ...], wait_s: float) -> None:
    """Wait until none of these deliveries is pending, and print how they ended."""
    deadline = time.monotonic() + wait_s
    rows = _rows(tool, ids)
    while any(row.status in (Status.PENDING, Status.WAITING) for row in rows) and time.monotonic() < deadline:
        time.sleep(WAIT_STEP_S)
        rows = _rows(tool, ids)
    states = [row.status for row in rows]
    console().print(", ".join(f"{states.count(s):,} {s}" for s in Status if s in states) + ".")
    if set(states) != {Status.DONE}:
        raise SystemExit(REFUSED)


@deliveries.command(
    epilog="""Example:
  {prog} deliveries discard --event {event} --older-than 7d --reason "long ago"
"""
)
@ids_argument
@filters
@click.option("--all", "everything", is_flag=True, help="Every failed delivery, without a filter.")
@click.option("--reason", required=True, type=REASON, help="Why; stored with the delivery.")
@click.option("--dry-run", is_flag=True, help="Only show what would be discarded.")
@click.option("--limit", default=1000, show_default=True, type=click.IntRange(1), help="At most this many.")
@pass_tool
def discard(
    tool: Tool,
    /,
    ids: tuple[UUID, ...],
    everything: bool,
    reason: str,
    dry_run: bool,
    limit: int,
    **options: Any,
) -> None:
    """Discard failed deliveries, with a reason. This is final: a discarded delivery cannot be re-run."""
    which = chosen(tool, ids, **options)
    must_choose(which, everything)
    counts = DeliveryQueries(tool.runtime.engine).count_failed(which)
    if dry_run:
        _say_what_would_happen(counts, limit, "discarded")
        return
    _say_what_is_left_alone(tool, ids)
    gone = tool.runtime.outbox.discard(which, tool.actor, limit, reason)
    console().print(f"{len(gone):,} discarded for good.")
    _say_what_is_over(counts, limit)
    if ids and not gone:
        raise SystemExit(REFUSED)
