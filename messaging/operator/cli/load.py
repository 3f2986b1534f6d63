"""`load`: send a CSV file of commands."""

from __future__ import annotations

from pathlib import Path

import click

from messaging.client import NotAnswered
from messaging.errors import Unavailable
from messaging.messages import Command
from messaging.operator import loading
from messaging.operator.cli.options import timeout_option
from messaging.operator.cli.output import console, print_table, progress
from messaging.operator.cli.tool import REFUSED, Documented, Interrupted, NoAnswer, Tool
from messaging.operator.loading import Line, columns_of, command_for, read_lines

pass_tool = click.make_pass_decorator(Tool)

SHOWN_REFUSALS = 20  # lines on the terminal; `--refused` writes them all


@click.command(
    cls=Documented,
    epilog="""Example:
  {prog} load orders.csv --refused refused.csv

Run the same command again to continue an interrupted load: lines that were carried out return their first
answer, lines that were refused are tried again.
Environment: {PROJECT}_BROKER_URL, {PROJECT}_RESULT_BACKEND_URL, {PROJECT}_DATABASE_URL.
Exit status: 1 if lines were refused.""",
)
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--refused", type=click.Path(dir_okay=False, path_type=Path), help="Write the refused lines here."
)
@timeout_option
@pass_tool
def load(tool: Tool, file: Path, refused: Path | None, timeout_s: float) -> None:
    """Send a CSV file of commands, one per line; its columns determine the command."""
    kind = command_for(tool.project.bus, columns_of(file))
    lines = list(read_lines(kind, file))
    settled: list[Line] = []
    try:
        _send_all(tool, lines, settled, timeout_s)
    except KeyboardInterrupt:
        raise Interrupted(f"Interrupted: {_so_far(settled, lines)}") from None
    except NotAnswered:
        raise NoAnswer(f"No answer in {timeout_s:g} s: {_so_far(settled, lines)}") from None
    except Unavailable as error:
        raise NoAnswer(f"{error}: {_so_far(settled, lines)}") from None
    _report(kind, settled, refused)


def _send_all(tool: Tool, lines: list[Line], settled: list[Line], timeout_s: float) -> None:
    with progress() as bar:
        task = bar.add_task("loading", total=len(lines))
        for line in loading.load(tool.client, lines, tool.runtime.settings, timeout_s):
            settled.append(line)
            bar.advance(task)


def _so_far(settled: list[Line], lines: list[Line]) -> str:
    return (
        f"{len(settled):,} of {len(lines):,} lines are answered, up to 200 more are in flight."
        " Run the same command again to continue; no line is carried out twice."
    )


def _report(kind: type[Command], settled: list[Line], refused: Path | None) -> None:
    refusals = [line for line in settled if line.refused]
    console().print(
        f"{len(settled) - len(refusals):,} {kind.__name__} carried out, {len(refusals):,} refused."
    )
    if refusals:
        rows = [(line.number, line.text, line.refused) for line in refusals]
        print_table(("line", "content", "refused because"), rows[:SHOWN_REFUSALS])
        if len(rows) > SHOWN_REFUSALS:
            console().print(f"… and {len(rows) - SHOWN_REFUSALS:,} more; --refused FILE writes them all.")
    if refused is not None:
        refused.write_text("".join(f"{line.number}: {line.text}: {line.refused}\n" for line in refusals))
    if refusals:
        raise SystemExit(REFUSED)
