"""Send a file of commands, one per line; a load can be interrupted and continued."""

from __future__ import annotations

import csv
import hashlib
import json
import uuid
from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from types import NoneType
from typing import Any, cast, get_type_hints

from messaging.bus import MessageBus
from messaging.client import Client, NotAnswered, Outcome
from messaging.errors import InvalidMessage, MessagingError, Unavailable, describe
from messaging.messages import Command, Message, types_in
from messaging.settings import MessagingSettings
from messaging.wire.validation import from_dict, model

#: Commands in flight at once: enough to keep workers busy, few enough to wait for after a Ctrl-C.
LINES_IN_A_MESSAGE, MESSAGES = 25, 8

#: Bytes that a command may take in a message, even with all its text escaped in JSON.
LONGEST_LINE = 16_384

#: Namespace of the idempotency keys of a file's commands: the same line of the same file has the same key.
NAMESPACE = uuid.UUID("8d3b1f0a-6d0c-4f3e-9f4b-4a6c0c0a9f11")


@dataclass(frozen=True)
class Line:
    """A line of the file: its command, and its outcome."""

    number: int  # numbered as in an editor
    text: str
    key: str
    command: Command | None = None
    result: Any = None
    refused: str | None = None  # why


def command_for(bus: MessageBus, columns: set[str]) -> type[Command]:
    """Return the command whose fields match the columns; other columns are ignored.

    Raises:
        InvalidMessage: no command, or more than one, has all its required fields among the columns.
    """
    found = [kind for kind in bus.commands if _required(kind) <= columns]
    most = max((len(_names(kind) & columns) for kind in found), default=0)
    best = [kind for kind in found if len(_names(kind) & columns) == most]
    if len(best) != 1:
        choices = "; ".join(f"{kind.__name__} has {', '.join(sorted(_names(kind)))}" for kind in bus.commands)
        raise InvalidMessage(
            "columns", f"({', '.join(sorted(columns))}) must be those of one command: {choices}"
        )
    return best[0]


def read_lines(kind: type[Command], path: Path) -> Iterator[Line]:
    """Yield each line with its command, or with its error.

    Raises:
        InvalidMessage: the file is not CSV.
    """
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    with _opened(path) as rows:
        for row in rows:
            more = row.pop(None, [])  # what is in no column
            shown = ",".join([*(value for value in row.values() if value is not None), *more])
            key = str(uuid.uuid5(NAMESPACE, f"{digest}:{rows.line_num}"))
            if any(more):
                yield Line(
                    rows.line_num, shown, key, refused="the line has more values than the file has columns"
                )
                continue
            try:
                command = from_dict(kind, _values(kind, row))
            except MessagingError as error:
                yield Line(rows.line_num, shown, key, refused=describe(error))
            else:
                yield Line(rows.line_num, shown, key, command)


def columns_of(path: Path) -> set[str]:
    """Return the names in the first line of a CSV file.

    Raises:
        InvalidMessage: the file is not CSV.
    """
    with _opened(path) as rows:
        return {name for name in rows.fieldnames or [] if name}


@contextmanager
def _opened(path: Path) -> Iterator[csv.DictReader[str]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file)
        try:
            yield rows
        except (csv.Error, UnicodeDecodeError) as error:
            place = f"after line {rows.line_num}: {error}"
            raise InvalidMessage("file", f"cannot be read as CSV in UTF-8 {place}") from None


def load(client: Client, lines: list[Line], settings: MessagingSettings, timeout_s: float) -> Iterator[Line]:
    """Send the lines of a file, and yield each once it has its answer; no line is carried out twice.

    `timeout_s` is how long the answer to one message may take.

    Raises:
        NotAnswered: no answer came in time; what was sent stays in its queue.
        Unavailable: the broker, the result backend or the database is unavailable.
    """
    commands = ((line.key, line.command) for line in lines if line.command is not None)
    size = min(LINES_IN_A_MESSAGE, settings.bulk_max, settings.message_max_bytes // LONGEST_LINE)
    outcomes = client.many(commands, size=size, in_flight=MESSAGES, timeout_s=timeout_s)
    for line in lines:
        yield line if line.command is None else _answered(line, next(outcomes))


def _answered(line: Line, outcome: Outcome) -> Line:
    if isinstance(outcome.error, (NotAnswered, Unavailable)):
        raise outcome.error
    return replace(line, result=outcome.result, refused=describe(outcome.error) if outcome.error else None)


def _values(kind: type[Command], row: Mapping[str, str | None]) -> dict[str, Any]:
    """Return a row's fields of that command; empty ones get their default."""
    return {
        name: from_text(kind, name, value)
        for name in _names(kind)
        if (value := row.get(name)) is not None and (value != "" or name in _required(kind))
    }


def from_text(kind: type[Message], name: str, value: str) -> Any:
    """Return a field's JSON value; the text is read as JSON where the field cannot be a text."""
    types = types_of(kind).get(name, frozenset())
    if value == "None" and NoneType in types:
        return None
    if int not in types and _may_be_text(cast("Hashable", kind), name):
        return value
    try:
        return int(value) if int in types else json.loads(value)
    except (ValueError, RecursionError):
        return value


def types_of(kind: type[Message]) -> dict[str, frozenset[Any]]:
    """Return the plain types of each field: `date | None` has two."""
    return _types_of(cast("Hashable", kind))


@cache
def _types_of(kind: Any) -> dict[str, frozenset[Any]]:
    return {name: frozenset(types_in(hint)) for name, hint in get_type_hints(kind).items()}


@cache
def _may_be_text(kind: Any, name: str) -> bool:
    schema = model(kind).model_json_schema()["properties"].get(name, {})
    return any(one.get("type", "string") == "string" for one in schema.get("anyOf", [schema]))


def _names(kind: type[Command]) -> set[str]:
    return {field.name for field in fields(kind)}


def _required(kind: type[Command]) -> set[str]:
    return {name for name, field in model(kind).model_fields.items() if field.is_required()}
