"""Commands by hand, files of commands, logged lines, and whether everything is in order."""

from __future__ import annotations

import dataclasses
import re
import sys
from dataclasses import asdict
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import click

from messaging.client import CommandFailed, NotAnswered
from messaging.errors import Unavailable, describe
from messaging.messages import Command, Event
from messaging.operator import loading
from messaging.operator.check import Checkup, Finding
from messaging.operator.cli.options import json_option, timeout_option
from messaging.operator.cli.output import console, print_json, print_table, progress
from messaging.operator.cli.tool import REFUSED, Documented, Failure, Interrupted, NoAnswer, Tool
from messaging.operator.loading import Line, columns_of, command_for, from_text, read_lines, types_of
from messaging.postgres.migrate import migrate as apply_migrations
from messaging.project import Project
from messaging.replay import parse_line
from messaging.validation import from_dict, model

pass_tool = click.make_pass_decorator(Tool)

key_option = click.option(
    *("--idempotency-key", "--task-id", "idempotency_key"),
    metavar="KEY",
    help="The command is carried out once for each key.  [default: a new one]",
)

SHOWN_REFUSALS = 20  # lines on the terminal; `--refused` writes them all


@click.command(cls=Documented, epilog="Example:\n  {prog} migrate\n\nEnvironment: {PROJECT}_DATABASE_URL.")
@pass_tool
def migrate(tool: Tool) -> None:
    """Bring the database to the newest schema; safe to run twice, and by two at once."""
    apply_migrations(tool.runtime.engine, tool.project.migrations)


@click.command(
    cls=Documented,
    epilog="""Example:
  {prog} check || echo "something is wrong"

Environment: {PROJECT}_DATABASE_URL, {PROJECT}_BROKER_URL, {PROJECT}_RESULT_BACKEND_URL, {PROJECT}_SMTP_URL.
Exit status: 0 when everything is there and works, else 1; "look" marks work for an operator.""",
)
@json_option
@pass_tool
def check(tool: Tool, as_json: bool) -> None:
    """Look at settings, servers, schema, workers, queues, beat and clocks, and at what failed and waits."""
    findings = list(Checkup(lambda: tool.app, tool.runtime, tool.app_path.partition(":")[0]).run())
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        print_table(("check", "", "what"), map(_finding, findings))
    if not all(finding.ok for finding in findings):
        raise SystemExit(REFUSED)


def _finding(finding: Finding) -> tuple[str, str, str]:
    remedy = f"\n{finding.remedy}" if finding.remedy else ""
    return finding.name, finding.state, finding.detail + remedy


@click.command(
    cls=Documented,
    epilog="""Example:
  {prog} replay 'Allocate(orderid="o1", sku="LAMP", qty=3)'
  grep Refused worker.log | tail -1 | {prog} replay -

The line is read as data, and nothing in it is run.
Environment: {PROJECT}_BROKER_URL, {PROJECT}_DATABASE_URL.""",
)
@click.argument("line")
@key_option
@timeout_option
@pass_tool
def replay(tool: Tool, line: str, idempotency_key: str | None, timeout_s: float) -> None:
    """Send a logged message again: a command as its sender did, an event to each of its handlers.

    LINE is the message as the log shows it, alone or with the log line around it; - reads it from standard
    input.
    """
    message = parse_line(tool.project.bus, sys.stdin.read() if line == "-" else line)
    if isinstance(message, Command):
        execute(tool, message, timeout_s, idempotency_key)
        return
    assert isinstance(message, Event)  # noqa: S101  # the bus knows nothing else
    for delivery in tool.dispatcher.raise_event(message):
        console().print(f"{message!r} goes to {delivery.handler} as {delivery.id}.", soft_wrap=True)


def execute(
    tool: Tool, command: Command, timeout_s: float, key: str | None = None, as_json: bool = False
) -> None:
    """Send a command, wait for its answer and print it."""
    sent = tool.client.delay(command, key=key)
    try:
        answer = tool.client.answer(sent, timeout_s)
    except NotAnswered:
        raise NoAnswer(
            f"No answer in {timeout_s:g} s. The command is in its queue under the id {sent.id}, and is"
            " carried out when a worker runs."
        ) from None
    except Unavailable:
        raise
    except CommandFailed as error:
        raise Failure(str(error)) from error
    except Exception as error:
        raise Failure(describe(error)) from error
    if as_json:
        print_json({"task_id": sent.id, "command": repr(command), "result": answer})
    else:
        console().print(f"{command!r}: {_shown(command, answer)}", soft_wrap=True)


def _shown(command: Command, answer: Any) -> str:
    """Return a result for people: what None means, and the None that a script gets."""
    return f"{command.none_means} (None)" if answer is None else repr(answer)


def commands_of(project: Project) -> list[click.Command]:
    """Return a command of the tool for each command of the project: `CreateBatch` is `create-batch`."""
    return [_command_for(kind) for kind in project.bus.commands]


def _command_for(kind: type[Command]) -> click.Command:
    name = re.sub(r"(?<!^)(?=[A-Z])", "-", kind.__name__).lower()
    fields = [_parameter(kind, field) for field in dataclasses.fields(kind)]
    example = " ".join(
        field.name.upper() for field in dataclasses.fields(kind) if _is_required(kind, field.name)
    )
    run = pass_tool(partial(_run, kind=kind))
    command = Documented(
        name,
        callback=run,
        params=fields,
        help=kind.__doc__,
        epilog=f"Example:\n  {{prog}} {name} {example}\n\nEnvironment: {{PROJECT}}_BROKER_URL, "
        "{PROJECT}_RESULT_BACKEND_URL.",
    )
    for option in (key_option, timeout_option, json_option):
        command = option(command)
    return command


def _run(
    tool: Tool,
    /,
    *,
    kind: type[Command],
    idempotency_key: str | None,
    timeout_s: float,
    as_json: bool,
    **values: str | None,
) -> None:
    given = {name: from_text(kind, name, value) for name, value in values.items() if value is not None}
    execute(tool, from_dict(kind, given), timeout_s, idempotency_key, as_json=as_json)


def _parameter(kind: type[Command], field: dataclasses.Field[Any]) -> click.Parameter:
    if _is_required(kind, field.name):
        return click.Argument([field.name])
    metavar = "YYYY-MM-DD" if date in types_of(kind)[field.name] else field.name.upper()
    return click.Option([f"--{field.name.replace('_', '-')}"], metavar=metavar)


def _is_required(kind: type[Command], name: str) -> bool:
    return model(kind).model_fields[name].is_required()


@click.command(
    cls=Documented,
    epilog="""Example:
  {prog} load batches.csv
  {prog} load orders.csv --refused refused.csv

The same command continues an interrupted load: a line that was carried out gets its first answer again,
and a line that was refused is tried again.
Environment: {PROJECT}_BROKER_URL, {PROJECT}_RESULT_BACKEND_URL, {PROJECT}_DATABASE_URL.
Exit status: 1 when lines were refused.""",
)
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--refused", type=click.Path(dir_okay=False, path_type=Path), help="Write the refused lines here."
)
@timeout_option
@pass_tool
def load(tool: Tool, file: Path, refused: Path | None, timeout_s: float) -> None:
    """Send a CSV file of commands, one a line; the columns say of which command."""
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
        f"{len(settled):,} of {len(lines):,} lines have their answer, up to 200 more are under way."
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
