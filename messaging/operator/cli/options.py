"""Options that several commands share: filters, times, ages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from messaging.operator.cli.tool import Tool
from messaging.operator.deliveries import DeliveryQueries, UnknownName
from messaging.operator.filters import parse_age, parse_moment, parse_text
from messaging.postgres.filters import DeliveryFilter

Function = TypeVar("Function", bound=Callable[..., Any])


class Parsed(click.ParamType[Any]):
    """An option's value as a function of its text, whose ValueError says what to write."""

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name, self.parse = name, parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the value, or end with how to write it."""
        try:
            return self.parse(value) if isinstance(value, str) else value
        except ValueError as error:
            self.fail(str(error), param, ctx)


AGE, MOMENT, TEXT = Parsed("age", parse_age), Parsed("time", parse_moment), Parsed("text", parse_text)

FILTERS = (
    click.option("--handler", type=TEXT, help="Only this event handler, by its function's name."),
    click.option("--event", type=TEXT, help="Only events of this class."),
    click.option("--error", type=TEXT, help="Only where the last error has this text in it."),
    click.option("--since", type=MOMENT, help="Failed (done, discarded) at or after this; or an age: 2h."),
    click.option("--until", type=MOMENT, help="Failed (done, discarded) before this; or an age: 15m."),
    click.option("--older-than", "older_than_s", type=AGE, help="Raised longer ago than this: 90s, 2h, 7d."),
    click.option(
        "--correlation", type=TEXT, metavar="ID", help="Only what came of the command with this task id."
    ),
)


def filters(function: Function) -> Function:
    """Give a command the filters; it takes them as keyword arguments, for `chosen`."""
    for option in reversed(FILTERS):
        function = option(function)
    return function


def chosen(tool: Tool, ids: tuple[Any, ...] = (), **options: Any) -> DeliveryFilter:
    """Return the filter that the options make; a handler or event that nobody knows ends the command."""
    which = DeliveryFilter(ids=tuple(map(str, ids)), **options)
    try:
        DeliveryQueries(tool.runtime.engine).require_known(tool.project.bus, which)
    except UnknownName as error:
        raise click.UsageError(str(error)) from error
    return which


def must_choose(which: DeliveryFilter, everything: bool) -> None:
    """Refuse to act on everything only because no filter was given."""
    if not which.facts and not everything:
        raise click.UsageError("Say which: ids, a filter, or --all for every failed delivery.")


json_option = click.option("--json", "as_json", is_flag=True, help="JSON for scripts instead of a table.")
ids_argument = click.argument("ids", metavar="[ID]...", nargs=-1, type=click.UUID)
list_limit_option = click.option(
    "--limit", default=50, show_default=True, type=click.IntRange(1, 100_000), help="At most this many."
)
timeout_option = click.option(
    "--timeout", "timeout_s", type=click.FloatRange(min=0.1), default=30.0, show_default=True,
    metavar="SECONDS",     help="How long to wait for the answer of a worker.",
)  # fmt: skip
