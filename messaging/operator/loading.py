"""Send a file of commands, one per line; a load can be interrupted and continued."""

from __future__ import annotations

import csv
import hashlib
import uuid
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from messaging.bus import MessageBus
from messaging.client import Answer, NotAnswered
from messaging.errors import InvalidMessage, Unavailable, describe
from messaging.messages import Command
from messaging.operator.sending import Sender
from messaging.validation import from_dict, model

#: Commands in flight at once: enough to keep workers busy, few enough to wait for after a Ctrl-C.
WINDOW = 200

#: Makes the idempotency keys of a file's commands: the same line of the same file always has the same.
NAMESPACE = uuid.UUID("8d3b1f0a-6d0c-4f3e-9f4b-4a6c0c0a9f11")


@dataclass(frozen=True)
class Line:
    """A line of the file: what was asked, and what came of it."""

    number: int  # as an editor counts them
    text: str
    key: str
    command: Command | None = None
    result: Any = None
    refused: str | None = None  # why


def command_for(bus: MessageBus, columns: set[str]) -> type[Command]:
    """Return the command whose fields the columns are; columns that it lacks are ignored.

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
    """Yield every line as a command, or refused with the field and the rule."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file)
        for row in rows:
            shown = ",".join(str(value) for value in row.values() if value is not None)
            key = str(uuid.uuid5(NAMESPACE, f"{digest}:{rows.line_num}"))
            try:
                command = from_dict(kind, _values(kind, row))
            except InvalidMessage as error:
                yield Line(rows.line_num, shown, key, refused=describe(error))
            else:
                yield Line(rows.line_num, shown, key, command)


def columns_of(path: Path) -> set[str]:
    """Return the names in the first line of a CSV file."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        return {name for name in csv.DictReader(file).fieldnames or [] if name}


@dataclass(frozen=True)
class Load:
    """Sends the lines of a file and collects their answers; no line is carried out twice."""

    sender: Sender
    timeout_s: float  # how long one answer may take

    def run(self, lines: list[Line]) -> Iterator[Line]:
        """Yield each line once it has its answer.

        Raises:
            NotAnswered: no answer came in time; what was sent stays in its queue.
            Unavailable: the broker, the result backend or the database is away.
        """
        waiting: deque[tuple[Line, Answer]] = deque()
        for line in lines:
            if line.command is None:
                yield line
                continue
            waiting.append((line, self.sender.send(line.command, line.key)))
            if len(waiting) >= WINDOW:
                yield self._collect(*waiting.popleft())
        while waiting:
            yield self._collect(*waiting.popleft())

    def _collect(self, line: Line, sent: Answer) -> Line:
        try:
            return _with(line, self.sender.answer(sent, self.timeout_s), None)
        except (NotAnswered, Unavailable):
            raise
        except Exception as error:  # noqa: BLE001  # a refusal, of whatever class the worker says
            return _with(line, None, describe(error))


def _with(line: Line, result: Any, refused: str | None) -> Line:
    return Line(line.number, line.text, line.key, line.command, result, refused)


def _values(kind: type[Command], row: Mapping[str, str | None]) -> dict[str, Any]:
    """Return a row's fields of that command; an empty one has its default."""
    return {
        name: from_text(kind, name, value)
        for name in _names(kind)
        if (value := row.get(name)) is not None and (value != "" or name in _required(kind))
    }


def from_text(kind: type[Any], name: str, value: str) -> Any:
    """Return a field's value as JSON has it: digits become a number where the field is one."""
    types = str(model(kind).model_json_schema()["properties"].get(name, {}))
    if "'integer'" in types:
        try:
            return int(value)
        except ValueError:
            return value
    if value == "None" and "'null'" in types:
        return None
    return value


def _names(kind: type[Command]) -> set[str]:
    return {field.name for field in fields(kind)}


def _required(kind: type[Command]) -> set[str]:
    return {name for name, field in model(kind).model_fields.items() if field.is_required()}
