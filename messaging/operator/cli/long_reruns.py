"""`deliveries reruns` and `stop`: re-runs that go on without the terminal."""

from __future__ import annotations

import time
from dataclasses import asdict

import click

from messaging.errors import describe
from messaging.operator.cli.deliveries import deliveries
from messaging.operator.cli.interrupts import between_turns
from messaging.operator.cli.options import json_option, list_limit_option
from messaging.operator.cli.output import console, print_json, print_table, progress
from messaging.operator.cli.tool import REFUSED, Interrupted, NoAnswer, Tool
from messaging.operator.reruns import begin, listed, standing
from messaging.postgres.filters import DeliveryFilter
from messaging.postgres.reruns import Progress
from messaging.postgres.transaction import DATABASE_ERRORS
from messaging.worker.rerunning import take_step

#: Seconds between two looks at a re-run.
LOOK_S = 0.2

#: Seconds for which the database may be away.
PATIENCE_S = 60.0

pass_tool = click.make_pass_decorator(Tool)


def rerun_after_canary(
    tool: Tool, which: DeliveryFilter, limit: int, canary: int, canary_s: float, rate: float | None
) -> None:
    """Re-run some at random, then the others if all of these succeed; end the program otherwise."""
    begun = begin(tool.dispatcher, which, tool.actor, limit, canary=canary, canary_s=canary_s, rate=rate)
    if begun.count:
        console().print(f"Re-run {begun.id}: trying {begun.count:,} first.")
    ended = _follow(tool, begun)
    console().print(standing(ended))
    if ended.outcome != "done":
        raise SystemExit(REFUSED)


def _follow(tool: Tool, standing_at: Progress) -> Progress:
    """Take the steps of a re-run until it ends; housekeeping takes them, too."""
    with between_turns() as stop, progress() as bar:
        task = bar.add_task("re-running", total=None)
        while standing_at.is_under_way:
            if stop.is_set():
                stopped = tool.runtime.bulk_reruns.stop(standing_at.id, tool.actor)
                raise Interrupted(standing(stopped))
            standing_at = _next(tool, standing_at)
            bar.update(task, completed=standing_at.count)
            if not standing_at.deliveries:
                stop.wait(LOOK_S)
    return standing_at


def _next(tool: Tool, standing_at: Progress) -> Progress:
    until = time.monotonic() + PATIENCE_S
    while True:
        try:
            return take_step(tool.dispatcher, standing_at.id)
        except DATABASE_ERRORS as error:
            if time.monotonic() > until:
                raise NoAnswer(
                    f"The database does not answer: {describe(error)}. Re-run {standing_at.id} goes on"
                    " without this program; `deliveries reruns` says where it stands"
                ) from error
            time.sleep(LOOK_S)


@deliveries.command(epilog="Example:\n  {prog} deliveries reruns")
@list_limit_option
@json_option
@pass_tool
def reruns(tool: Tool, limit: int, as_json: bool) -> None:
    """List re-runs of many that are under way, and those of the last day that have ended.

    A re-run that was begun in Flower or with --canary goes on until it ends, whatever dies meanwhile.
    """
    found = listed(tool.runtime, limit)
    if as_json:
        print_json([asdict(one) for one in found])
    elif found:
        rows = (
            (
                one.id,
                one.at,
                one.actor,
                f"{one.count:,}" + (f" of {one.expected:,}" if one.expected is not None else ""),
                f"{one.state}: {one.what}",
            )
            for one in found
        )
        print_table(("re-run", "since", "by", "requeued", "state and filter"), rows)
    else:
        console().print("No re-runs are under way.")


@deliveries.command(epilog="Example:\n  {prog} deliveries stop 17")
@click.argument("number", type=click.IntRange(1))
@pass_tool
def stop(tool: Tool, number: int) -> None:
    """Stop a re-run that is under way: what was requeued runs, the rest stays failed."""
    console().print(standing(tool.runtime.bulk_reruns.stop(number, tool.actor)))
