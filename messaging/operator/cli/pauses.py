"""`deliveries pause`, `resume`, `close`, `pauses` and `blocked`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click
from rich.text import Text

from messaging.operator.cli.deliveries import SHOWN_ERROR, deliveries
from messaging.operator.cli.options import REASON, TEXT, json_option, list_limit_option
from messaging.operator.cli.output import console, print_json, print_table, printable
from messaging.operator.cli.tool import Tool
from messaging.operator.pausing import Pausing, active
from messaging.postgres.order import BlockedLane
from messaging.postgres.pauses import Scope

pass_tool = click.make_pass_decorator(Tool)

SUBJECT = (
    click.argument("handler", metavar="[HANDLER]", required=False, type=TEXT),
    click.option("--event", type=TEXT, help="All handlers of events of this class."),
    click.option("--all", "everything", is_flag=True, help="All handlers of all events."),
)


def subject(function: Any) -> Any:
    """Give a command the options that say what is paused."""
    for option in reversed(SUBJECT):
        function = option(function)
    return function


def _subject(handler: str | None, event: str | None, everything: bool) -> tuple[Scope, str]:
    given = [
        (Scope.HANDLER, handler), (Scope.EVENT, event), (Scope.ALL, "" if everything else None),
    ]  # fmt: skip
    chosen = [(scope, name) for scope, name in given if name is not None]
    if len(chosen) != 1:
        raise click.UsageError("Name one handler, or pass --event EVENT or --all.")
    return chosen[0]


@deliveries.command(
    epilog="""Example:
  {prog} deliveries pause {handler} --reason "the mail server is being moved"
  {prog} deliveries pause --event {event} --reason "wrong prices"
  {prog} deliveries pause --group 0123456789
"""
)
@subject
@click.option("--group", type=TEXT, help="The handler of this group of failures, as `groups` lists it.")
@click.option(
    "--reason",
    type=REASON,
    help="Why; shown wherever its deliveries are listed. Only with --group there is a default: its error.",
)
@pass_tool
def pause(
    tool: Tool,
    handler: str | None,
    event: str | None,
    everything: bool,
    group: str | None,
    reason: str | None,
) -> None:
    """Stop a handler, the handlers of an event, or all, until `resume`.

    Their deliveries wait and use up no attempts. What is running finishes. Workers notice within a second.
    """
    pausing = Pausing(tool.dispatcher)
    if group is not None:
        if handler is not None or event is not None or everything:
            raise click.UsageError("Pass --group alone: it names its handler.")
        console().print(pausing.pause_group(group, tool.actor, reason), soft_wrap=True)
        return
    scope, name = _subject(handler, event, everything)
    if reason is None:
        raise click.UsageError("Missing option '--reason'.")
    console().print(pausing.pause(scope, name, tool.actor, reason))


@deliveries.command(epilog="Example:\n  {prog} deliveries resume {handler}")
@subject
@click.option("--reason", type=REASON, help="Why; kept in the audit.")
@pass_tool
def resume(tool: Tool, handler: str | None, event: str | None, everything: bool, reason: str | None) -> None:
    """End a pause; the relay sends what waits, only as fast as workers take it."""
    scope, name = _subject(handler, event, everything)
    console().print(Pausing(tool.dispatcher).resume(scope, name, tool.actor, reason))


@deliveries.command(epilog="Example:\n  {prog} deliveries close {handler} --reason 'the mail server is back'")
@click.argument("handler", type=TEXT)
@click.option("--reason", type=REASON, help="Why; kept in the audit.")
@pass_tool
def close(tool: Tool, handler: str, reason: str | None) -> None:
    """Close a handler's breaker before its pause is over: all its deliveries go on.

    It opens again if the failures go on.
    """
    console().print(Pausing(tool.dispatcher).close(handler, tool.actor, reason))


@deliveries.command(epilog="Example:\n  {prog} deliveries pauses")
@json_option
@pass_tool
def pauses(tool: Tool, as_json: bool) -> None:
    """List what is paused, by whom, why and since when, and which handlers their breakers have stopped."""
    found, stopped = active(tool.runtime), tool.runtime.breakers.stopped().values()
    if as_json:
        print_json({"pauses": [asdict(one) for one in found], "breakers": [asdict(one) for one in stopped]})
        return
    if found:
        rows = ((one.subject, one.at, one.actor, one.reason) for one in found)
        print_table(("paused", "since", "by", "why"), rows)
    for one in stopped:
        console().print(Text(printable(str(one))), soft_wrap=True)
    if not found and not stopped:
        console().print("Nothing is paused.")


@deliveries.command(epilog="Example:\n  {prog} deliveries blocked")
@list_limit_option
@json_option
@pass_tool
def blocked(tool: Tool, limit: int, as_json: bool) -> None:
    """List what waits for its turn: of which handler and key, how many, and what blocks them.

    A handler that keeps an order waits until the earlier deliveries of the same key are done or discarded.
    """
    found = tool.runtime.lanes.blocked(limit)
    if as_json:
        print_json([asdict(one) for one in found])
    elif found:
        rows = (
            (
                one.blocked_by,
                one.status,
                f"{one.waiting:,}",
                one.since,
                f"{one.key} for {one.handler}{_error(one)}",
            )
            for one in found
        )
        print_table(("blocked by", "which is", "waiting", "since", "what"), rows)
    else:
        console().print("No deliveries wait for their turn.")


def _error(lane: BlockedLane) -> str:
    return f"\n{lane.last_error[:SHOWN_ERROR]}" if lane.last_error else ""
