"""Options that several commands share: filters, times, ages."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import click

from messaging.operator.filters import DeliveryFilter

Function = TypeVar("Function", bound=Callable[..., Any])

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class Age(click.ParamType[float]):
    """`90s`, `15m`, `2h`, `7d`: seconds."""

    name = "age"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return seconds."""
        if isinstance(value, float):
            return value
        found = re.fullmatch(r"(\d{1,9}(?:\.\d+)?)([smhd])", str(value))
        if found is None:
            self.fail(f"{value!r} is no age; write 90s, 15m, 2h or 7d", param, ctx)
        return float(found[1]) * UNITS[found[2]]


class Moment(click.ParamType[datetime]):
    """An ISO 8601 time, UTC unless it says otherwise, or an age: `2h` is two hours ago."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        """Return a time with its zone."""
        if isinstance(value, datetime):
            return value
        if re.fullmatch(r"[\d.]+[smhd]", str(value)):
            return datetime.now(UTC) - timedelta(seconds=AGE.convert(value, param, ctx))
        try:
            moment = datetime.fromisoformat(str(value))
        except ValueError:
            self.fail(
                f"{value!r} is no time; write 2026-01-31T10:00 (UTC), or 2h for two hours ago", param, ctx
            )
        return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


AGE, MOMENT = Age(), Moment()

FILTERS = (
    click.option("--handler", help="Only this event handler, by its function's name."),
    click.option("--event", help="Only events of this class."),
    click.option("--error", metavar="TEXT", help="Only where the last error has this text in it."),
    click.option("--since", type=MOMENT, help="Failed (done, discarded) at or after this; or an age: 2h."),
    click.option("--until", type=MOMENT, help="Failed (done, discarded) before this; or an age: 15m."),
    click.option("--older-than", "older_than_s", type=AGE, help="Raised longer ago than this: 90s, 2h, 7d."),
    click.option("--correlation", metavar="ID", help="Only what came of the command with this task id."),
)


def filters(function: Function) -> Function:
    """Give a command the filters; it takes them as keyword arguments, for `chosen`."""
    for option in reversed(FILTERS):
        function = option(function)
    return function


def chosen(ids: tuple[Any, ...] = (), **options: Any) -> DeliveryFilter:
    """Return the filter that the options make."""
    return DeliveryFilter(ids=tuple(map(str, ids)), **options)


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
