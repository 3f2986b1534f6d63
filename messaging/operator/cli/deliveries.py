"""`deliveries …`: list, show, edit and count the deliveries of events to their handlers."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any
from uuid import UUID

import click
from rich.text import Text

from messaging.delivery import Delivery, Status
from messaging.messages import Event
from messaging.operator.cli import story
from messaging.operator.cli.options import (
    chosen,
    filters,
    json_option,
    list_limit_option,
)
from messaging.operator.cli.output import age, console, print_json, print_table, printable, when
from messaging.operator.cli.tool import Failure, Group, Tool
from messaging.operator.deliveries import DeliveryQueries
from messaging.operator.loading import from_text
from messaging.operator.pausing import active, shown
from messaging.operator.stats import Statistics
from messaging.operator.waits import Waits
from messaging.postgres.filters import DeliveryFilter
from messaging.worker.dispatcher import shown_event

SHOWN_ERROR = 120  # characters of an error in a table

pass_tool = click.make_pass_decorator(Tool)


@click.group(
    cls=Group,
    epilog="""Example:
  {prog} deliveries list
  {prog} deliveries show 0198c6a2-0000-7000-8000-000000000000
  {prog} deliveries rerun --error "Connection refused" --dry-run""",
)
def deliveries() -> None:
    """Inspect and re-run deliveries of events to their handlers.

    A delivery is one event for one handler. It is pending until its handler succeeds, waiting while something
    holds it back, failed once its attempts are used up, and discarded if an operator gives it up.
    """


@deliveries.command(
    "list",
    epilog="""Example:
  {prog} deliveries list --status failed --handler {handler} --since 2h
  {prog} deliveries list --correlation 4c1e7b0e-8f53-4a40-9a3c-0d2f5c9c7d11""",
)
@click.option(
    "--status", "statuses", multiple=True, type=click.Choice([*(status.value for status in Status), "all"]),
    help="State; may be repeated.  [default: failed; with --correlation: all]",
)  # fmt: skip
@filters
@list_limit_option
@json_option
@pass_tool
def list_(tool: Tool, /, statuses: tuple[str, ...], limit: int, as_json: bool, **options: Any) -> None:
    """List deliveries, those that ended last first."""
    which = chosen(tool, **options)
    rows = DeliveryQueries(tool.runtime.engine).find(which, _states(statuses, which), limit)
    waits = Waits(tool.runtime, rows)
    if as_json:
        print_json([{**_record(tool, row), "waits": waits.of(row)} for row in rows])
        return
    say_pauses(tool)
    if rows:
        print_table(("id", "status", "since", "what"), (_line(tool, row, waits.of(row)) for row in rows))
    else:
        console().print("No deliveries match.")


def say_pauses(tool: Tool) -> None:
    """Print what is paused, and what its breaker has stopped."""
    for pause in active(tool.runtime):
        console().print(Text(f"Paused: {printable(shown(pause))}", "yellow"), soft_wrap=True)
    for stopped in tool.runtime.breakers.stopped().values():
        console().print(Text(f"Breaker: {printable(str(stopped))}", "yellow"), soft_wrap=True)


def _states(statuses: tuple[str, ...], which: DeliveryFilter) -> list[Status]:
    if "all" in statuses or (not statuses and which.correlation):
        return list(Status)
    return [Status(status) for status in dict.fromkeys(statuses)] or [Status.FAILED]


def _line(tool: Tool, row: Delivery, waits: str) -> tuple[object, ...]:
    tries = f"{row.attempts} tries" + (f", re-run {row.reruns}" if row.reruns else "")
    error = f"\n{row.last_error[:SHOWN_ERROR]}" if row.last_error else ""
    what = f"{_event(tool, row)} for {row.handler}, {tries}{f', {waits}' if waits else ''}{error}"
    return row.id, row.status, row.finished_at or row.created_at, what


def _event(tool: Tool, row: Delivery) -> str:
    return shown_event(tool.project, row)


def _record(tool: Tool, row: Delivery) -> dict[str, Any]:
    return {**asdict(row), "event": _event(tool, row)}


@deliveries.command(epilog="Example:\n  {prog} deliveries show 0198c6a2-0000-7000-8000-000000000000")
@click.argument("delivery_id", metavar="ID", type=click.UUID)
@json_option
@pass_tool
def show(tool: Tool, delivery_id: UUID, as_json: bool) -> None:
    """Show one delivery: its event, its attempts, and the command that caused it with its result."""
    found = DeliveryQueries(tool.runtime.engine).story(str(delivery_id))
    if found is None:
        raise Failure(f"There is no delivery {delivery_id}")
    if as_json:
        shown = {
            "delivery": _record(tool, found.delivery),
            "through": [_record(tool, row) for row in found.through],
            "related": [_record(tool, row) for row in found.related],
        }
        print_json({**asdict(found), **shown, "event": _event(tool, found.delivery)})
    else:
        waits = Waits(tool.runtime, [found.delivery]).of(found.delivery)
        story.print_story(tool.project, found, waits)


@deliveries.command(
    epilog="Example:\n  {prog} deliveries edit 0198c6a2-0000-7000-8000-000000000000 {field}=VALUE"
)
@click.argument("delivery_id", metavar="ID", type=click.UUID)
@click.argument("changes", metavar="FIELD=VALUE...", nargs=-1, required=True)
@pass_tool
def edit(tool: Tool, delivery_id: UUID, changes: tuple[str, ...]) -> None:
    """Run a corrected copy of a failed delivery; the original is discarded and names the copy."""
    row = DeliveryQueries(tool.runtime.engine).get(str(delivery_id))
    if row is None:
        raise Failure(f"There is no delivery {delivery_id}")
    kind = tool.project.bus.event_types.get(row.event_type)
    if kind is None:
        raise Failure(f"This release has no event {row.event_type}")
    copy = tool.runtime.outbox.edit(row.id, kind, _changes(kind, changes), tool.actor)
    tool.dispatcher.send_known([copy])
    console().print(f"{copy.event!r} goes to {row.handler} as {copy.id}; {row.id} is discarded.")


def _changes(kind: type[Event], changes: tuple[str, ...]) -> dict[str, Any]:
    pairs = [change.partition("=") for change in changes]
    wrong = [name for name, equals, _ in pairs if not equals]
    if wrong:
        raise click.UsageError(f"Write {wrong[0]!r} as FIELD=VALUE.")
    return {name: from_text(kind, name, value) for name, _, value in pairs}


@deliveries.command(epilog="Example:\n  {prog} deliveries stats --json")
@json_option
@pass_tool
def stats(tool: Tool, as_json: bool) -> None:
    """Count deliveries by state and handler and failures by hour; show how long one has been pending."""
    found = Statistics.of(tool.runtime).overview()
    counts = [
        {"status": status, "handler": handler, "count": n}
        for (status, handler), n in sorted(found.deliveries.items())
    ]
    if as_json:
        failures = {when(hour): n for hour, n in found.failures.items()}
        print_json({**asdict(found), "deliveries": counts, "failures": failures})
        return
    say_pauses(tool)
    rows = ((f"{c['count']:,}", c["status"], c["handler"]) for c in counts)
    print_table(("count", "status", "handler"), rows)
    console().print(f"\noldest pending: {age(found.oldest_pending_s)}")
    console().print(f"open dead letters: {sum(found.dead_letters.values()):,}")
    if found.failures:
        console().print("\nfailed attempts by hour")
        print_table(("hour", "count"), ((when(hour), n) for hour, n in found.failures.items()))
