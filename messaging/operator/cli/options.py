"""Options that several commands share: filters, times, ages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from messaging.operator.cli.tool import Tool
from messaging.operator.deliveries import DeliveryQueries, UnknownName
from messaging.operator.filters import parse_age, parse_moment, parse_text
from messaging.postgres.filters import DeliveryFilter
from messaging.texts import storable

Function = TypeVar("Function", bound=Callable[..., Any])


class Parsed(click.ParamType[Any]):
    """An option that a function parses; its ValueError says what to write."""

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name, self.parse = name, parse

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the value, or fail with how to write it."""
        try:
            return self.parse(value) if isinstance(value, str) else value
        except ValueError as error:
            self.fail(str(error), param, ctx)


def _reason(text: str) -> str:
    if not text.strip():
        raise ValueError("it is blank; give a reason, which is stored with each discarded row")
    return storable(text)


REASON = Parsed("text", _reason)
AGE, MOMENT, TEXT = Parsed("age", parse_age), Parsed("time", parse_moment), Parsed("text", parse_text)

FILTERS = (
    click.option("--handler", type=TEXT, help="Only this event handler, by its function's name."),
    click.option("--event", type=TEXT, help="Only events of this class."),
    click.option("--group", type=TEXT, help="Only this group of failures, as `groups` lists it."),
    click.option("--error", type=TEXT, help="Only those whose last error contains this text."),
    click.option(
        "--since", type=MOMENT, help="Failed (done, discarded) at or after this time; or an age: 2h."
    ),
    click.option("--until", type=MOMENT, help="Failed (done, discarded) before this time; or an age: 15m."),
    click.option(
        "--older-than", "older_than_s", type=AGE, help="Raised longer ago than this age: 90s, 2h, 7d."
    ),
    click.option(
        "--correlation", type=TEXT, metavar="ID", help="Only those caused by the command with this task id."
    ),
)


def filters(function: Function) -> Function:
    """Give a command the filters; it takes them as keyword arguments, for `chosen`."""
    for option in reversed(FILTERS):
        function = option(function)
    return function


def chosen(
    tool: Tool, ids: tuple[Any, ...] = (), handler: str | None = None, **options: Any
) -> DeliveryFilter:
    """Return the filter from the options; an unknown handler or event ends the command."""
    handlers = tool.project.handler_names(handler) if handler else ()
    which = DeliveryFilter(ids=tuple(map(str, ids)), handlers=handlers, **options)
    try:
        DeliveryQueries(tool.runtime.engine).require_known(tool.project.bus, which)
    except UnknownName as error:
        raise click.UsageError(str(error)) from error
    return which


def must_choose(which: DeliveryFilter, everything: bool) -> None:
    """Refuse to act on everything only because no filter was given."""
    if not which.facts and not everything:
        raise click.UsageError("Choose by ids or a filter, or pass --all for every failed delivery.")


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
ids_argument = click.argument("ids", metavar="[ID]...", nargs=-1, type=click.UUID)
list_limit_option = click.option(
    "--limit", default=50, show_default=True, type=click.IntRange(1, 100_000), help="Show at most this many."
)
timeout_option = click.option(
    "--timeout", "timeout_s", type=click.FloatRange(min=0.1), default=30.0, show_default=True,
    metavar="SECONDS", help="How long to wait for a worker's answer.",
)  # fmt: skip
key_option = click.option(
    *("--idempotency-key", "--task-id", "idempotency_key"),
    metavar="KEY",
    help="Idempotency key: a command takes effect once per key.  [default: a new key]",
)
