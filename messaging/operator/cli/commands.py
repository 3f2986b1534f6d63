"""A command of the tool for each command of the project."""

from __future__ import annotations

import dataclasses
import re
from datetime import date
from functools import partial
from typing import Any

import click

from messaging.messages import Command
from messaging.operator.cli.options import json_option, key_option, timeout_option
from messaging.operator.cli.send import execute
from messaging.operator.cli.tool import Documented, Tool
from messaging.operator.loading import from_text, types_of
from messaging.project import Project
from messaging.wire.validation import from_dict, model

pass_tool = click.make_pass_decorator(Tool)


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
