"""`deliveries groups` and `reproduce`: failures by their probable cause, and as a test."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any
from uuid import UUID

import click

from messaging.operator.cli.deliveries import deliveries, say_pauses
from messaging.operator.cli.options import chosen, filters, json_option, list_limit_option
from messaging.operator.cli.output import console, print_json, print_table
from messaging.operator.cli.tool import Failure, Tool
from messaging.operator.deliveries import DeliveryQueries, FailureGroup
from messaging.operator.reproduce import test_of

pass_tool = click.make_pass_decorator(Tool)


@deliveries.command(
    epilog="""Example:
  {prog} deliveries groups
  {prog} deliveries groups --handler {handler} --since 2h
"""
)
@filters
@list_limit_option
@json_option
@pass_tool
def groups(tool: Tool, /, limit: int, as_json: bool, **options: Any) -> None:
    """List failed deliveries in groups that probably have the same cause, the largest group first.

    A group is one handler, one class of error, one place in the project's code, and one message without its
    numbers and ids. `rerun --group`, `discard --group` and `list --group` act on it.
    """
    found = DeliveryQueries(tool.runtime.engine).groups(chosen(tool, **options), limit)
    if as_json:
        print_json([asdict(one) for one in found])
        return
    say_pauses(tool)
    if found:
        rows = ((one.id, f"{one.count:,}", one.first, one.last, _what(one)) for one in found)
        print_table(("group", "failed", "first", "last", "what"), rows)
    else:
        console().print("No deliveries match.")


@deliveries.command(
    epilog="""Example:
  {prog} deliveries reproduce 0198c6a2-0000-7000-8000-000000000000
"""
)
@click.argument("delivery_id", metavar="ID", type=click.UUID)
@pass_tool
def reproduce(tool: Tool, delivery_id: UUID) -> None:
    """Print a test file: the event, the handler, the project's fakes, and the recorded error as expected.

    It fails like the delivery did. If it does not, the cause lies outside of the handler: in a server, or in
    what the database held.
    """
    story = DeliveryQueries(tool.runtime.engine).story(str(delivery_id))
    if story is None:
        raise Failure(f"There is no delivery {delivery_id}")
    traceback = story.attempts[-1].traceback if story.attempts else ""
    click.echo(test_of(tool.project, story.delivery, traceback), nl=False)


def _what(group: FailureGroup) -> str:
    return f"{group.handler}: {group.error}\nsuch as {group.example}"
