"""Tables and times for people, JSON for scripts. Colour only on a terminal, unless NO_COLOR is set."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, date, datetime
from typing import Any

import click
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

#: Width of a table in a file or a pipe, in characters.
PIPE_WIDTH = 200

#: Characters that a column of sentences needs to be readable.
SENTENCE = 30
INDENT = (0, 0, 0, 2)

STYLES = {
    "pending": "yellow", "waiting": "cyan", "done": "green", "failed": "red", "discarded": "dim",
    "open": "red", "replayed": "green", "ok": "green", "look": "yellow", "wrong": "red",
}  # fmt: skip


def console() -> Console:
    """Return the console for results."""
    return Console(width=None if sys.stdout.isatty() else PIPE_WIDTH, highlight=False, markup=False)


def progress() -> Progress:
    """Return a progress bar on standard error, disabled unless that is a terminal."""
    errors = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=errors,
        disable=not errors.is_terminal,
    )


def print_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print rows as a table, or as paragraphs where the terminal is too narrow for one."""
    out = console()
    out.print(laid_out(columns, rows, out.width))


def laid_out(columns: Sequence[str], rows: Iterable[Sequence[object]], width: int) -> RenderableType:
    """Return rows as a table; as paragraphs if its last column would have to wrap at less than `SENTENCE`."""
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max(map(_width, column)) for column in zip(*cells, strict=True)]
    if not cells or width - sum(widths[:-1]) - 2 * len(widths) >= min(SENTENCE, widths[-1]):
        return _table(columns, cells)
    paragraphs: list[RenderableType] = []
    for *first, last in cells:
        paragraphs += [Text("  ").join(first), Padding(last, INDENT)]
    return Group(*paragraphs)


def _table(columns: Sequence[str], rows: Iterable[Sequence[Text]]) -> Table:
    """Return rows as a table; the first column never wraps, since it is for copying."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, name in enumerate(columns):
        table.add_column(name, no_wrap=number == 0, overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table


def _width(cell: Text) -> int:
    return max((line.cell_len for line in cell.split("\n")), default=0)


def print_json(value: object) -> None:
    """Print one JSON value; times are ISO 8601 in UTC."""
    click.echo(json.dumps(value, default=_jsonable, indent=2, ensure_ascii=False))


def print_facts(facts: Iterable[tuple[str, object]]) -> None:
    """Print names and values, one per line, leaving out those without a value."""
    for name, value in facts:
        if value is not None and value != "":
            console().print(Text(f"{name + ':':<13}", "bold") + _cell(value), soft_wrap=True)


def when(moment: datetime | None) -> str:
    """Return a time to the second, in UTC."""
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ") if moment else ""


def age(seconds: float) -> str:
    """Return a duration in its largest unit."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def _cell(value: object) -> Text:
    shown = "" if value is None else when(value) if isinstance(value, datetime) else str(value)
    return Text(printable(shown), STYLES.get(shown, ""))


def printable(text: str) -> str:
    """Return a text that is safe to print: control characters are escaped, newlines and tabs stay."""
    return "".join(
        letter if letter.isprintable() or letter in "\n\t" else letter.encode("unicode_escape").decode()
        for letter in text
    )


def _jsonable(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")
