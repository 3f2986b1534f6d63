"""Commands that are sent if and only if the caller's own database transaction commits.

`send` writes a row in that transaction. A relay, `python -m <project>.client relay`, sends it, and hands the
answer to the app in another transaction of the same database. docs/how-to/sending-from-a-transaction.md
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import date, datetime
from itertools import repeat
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from messaging import tracing
from messaging.client.answers import Outcome, declared_errors, rebuilt
from messaging.client.client import Client
from messaging.client.connections import Statements, check_transaction, statements
from messaging.client.databases import Database
from messaging.client.dialects import ddl, dialect_named
from messaging.client.pace import Pace
from messaging.client.relay import OnAnswer, Relay
from messaging.client.table import MAX_BYTES, CommandTable, Entry, Waiting
from messaging.errors import InvalidMessage, MessagingError
from messaging.messages import Command, task_name, to_dict, types_in

Handler = TypeVar("Handler", bound=OnAnswer)


class KeyTaken(MessagingError):
    """The key names another command in the table already."""


class Outbox:
    """The table of commands of an app that sends to one project."""

    def __init__(
        self,
        project: str,
        commands: Iterable[type[Command]],
        refusals: Iterable[type[Exception]] = (),
        table: str = "command_outbox",
    ) -> None:
        """`commands` are those of the project, `refusals` its errors, `table` is in the app's database."""
        self.project = project
        self.table = CommandTable(table)
        self.handler: OnAnswer | None = None
        self._kinds: Mapping[str, type[Command]] = {task_name(project, kind): kind for kind in commands}
        self._errors = declared_errors(refusals)

    def ddl(self, dialect: str) -> list[str]:
        """Return the statements that create the table, for the app's own migrations.

        `dialect` is `postgresql`, `mysql` (also MariaDB) or `sqlite`.
        """
        return ddl(dialect_named(dialect), self.table.name)

    def create_table(self, target: Any, *, dialect: str | None = None) -> None:
        """Create the table in the caller's transaction; see `send` for what `target` may be."""
        run = statements(target, dialect)
        for statement in self.ddl(run.dialect.name):
            run.write(statement)

    def send(
        self,
        target: Any,
        command: Command,
        *,
        key: str,
        group: str | None = None,
        dialect: str | None = None,
    ) -> str:
        """Have a command sent once the caller's transaction commits, and not otherwise; return its key.

        `target` is a SQLAlchemy `Session` or `Connection`, Django's `connection`, or a DB-API connection,
        whose database `dialect` names where its driver is not known.
        `key` is the idempotency key (1 to 255 characters). The same command under the same key again is the
        same command; it is sent once.
        A command of a `group` is sent when those before it in the group have been answered.

        Raises:
            KeyTaken: the key is that of another command.
            InvalidMessage: the key or the group cannot be one, or there is no such command, or none so long.
            NoTransaction: the connection commits each statement at once.
            TypeError: a field cannot be written as JSON.
        """
        task = task_name(self.project, type(command))
        if task not in self._kinds:
            raise InvalidMessage("command", f"must be one of {', '.join(sorted(self._kinds))}")
        _check_name("idempotency_key", key)
        if group is not None:
            _check_name("order_group", group)
        check_transaction(target)
        run = statements(target, dialect)
        _check_charset(run, key, group or "")
        fields = json.dumps(to_dict(command), sort_keys=True)
        if len(fields) > MAX_BYTES:
            raise InvalidMessage("fields", f"must be at most {MAX_BYTES} bytes of JSON")
        row = (key, task, fields, group, self._trace(run))
        if not self.table.add(run, *row):
            there = self.table.find(run, key)
            if there is None and self.table.add(run, *row):  # a relay has pruned the old one meanwhile
                return key
            if there is None or (there.key, there.task, there.fields) != (key, task, fields):
                raise KeyTaken(f"the key {key!r} is that of another command")
        return key

    def _trace(self, run: Statements) -> str | None:
        """Return the current trace, if the table keeps it."""
        traceparent = tracing.current()
        if traceparent is not None and not self.table.traced and self.table.has_traces(run):
            self.table = replace(self.table, traced=True)
        return traceparent if self.table.traced else None

    def on_answer(self, handler: Handler) -> Handler:
        """Have a function called with each `Outcome` and the transaction in which that is noted.

        It is called at least once for each answer; what it does in that transaction happens once. When it
        raises, its transaction is rolled back and it is called again later.
        """
        self.handler = handler
        return handler

    def outcome(self, target: Any, key: str, *, dialect: str | None = None) -> Outcome | None:
        """Return what a command came to; None while it has no answer, or is not in the table."""
        entry = self.table.find(statements(target, dialect), key)
        return None if entry is None or entry.answer is None else self.outcome_of(entry)

    def send_again(self, target: Any, key: str, *, dialect: str | None = None) -> bool:
        """Send an answered command once more, as a repeat; False where there is none under this key.

        A command that was carried out gets its first result again, one that was refused another try.
        """
        return self.table.send_again(statements(target, dialect), key)

    def waiting(self, target: Any, *, dialect: str | None = None) -> Waiting:
        """Count what waits, for a gauge."""
        return self.table.waiting(statements(target, dialect))

    def relay(
        self,
        database: Database,
        broker_url: str,
        backend_url: str,
        *,
        on_answer: OnAnswer | None = None,
        keep_answers: bool = False,
        pace: Pace | None = None,
        **client_options: Any,
    ) -> Relay:
        """Return a relay; any number of them may run at once.

        Answers go to `on_answer`, else to the function that was decorated with `on_answer`. With
        `keep_answers` they only stay in the table, where `outcome` finds them.
        `client_options` are those of `Client`, such as `signing` and `ca_file`.

        Raises:
            ValueError: there is no `on_answer`, and `keep_answers` is not set.
        """
        handler = None if keep_answers else on_answer or self.handler
        if handler is None and not keep_answers:
            raise ValueError(
                "name what handles the answers: on_answer, or keep_answers to leave them in the table"
            )
        # Without a backend, publishing needs the broker alone.
        sender = Client(self.project, broker_url, "disabled://", **client_options)
        reader = Client(self.project, broker_url, backend_url, **client_options)
        return Relay(self.table, database, sender, reader, self.outcome_of, handler, pace or Pace())

    def outcome_of(self, entry: Entry) -> Outcome:
        """Return what an answered command came to.

        Raises:
            InvalidMessage: it is a command that this release does not know.
        """
        command = self._command(entry)
        answer = json.loads(entry.answer or "{}")
        error = answer.get("error")
        if error is None:
            return Outcome(entry.key, command, answer.get("result"))
        return Outcome(entry.key, command, error=rebuilt(self._errors, error["type"], error["message"]))

    def _command(self, entry: Entry) -> Command:
        kind = self._kinds.get(entry.task)
        if kind is None:
            raise InvalidMessage("task", f"{entry.task} is unknown to this release")
        hints = get_type_hints(kind)
        fields = json.loads(entry.fields)
        return kind(**{name: _value(hints.get(name), value) for name, value in fields.items()})


def _value(hint: Any, value: Any) -> Any:
    """Return what a JSON value is in the command: perhaps a date, a time or a tuple, or a list with some."""
    for kind in types_in(hint):
        origin, inner = get_origin(kind) or kind, get_args(kind)
        if origin in (date, datetime) and isinstance(value, str):
            with suppress(ValueError):  # a text that is allowed in its place
                return origin.fromisoformat(value)
        if origin in (list, tuple) and isinstance(value, list):
            each = inner if origin is tuple and ... not in inner else inner[:1] * len(value)
            return origin(map(_value, each or repeat(Any), value))
        if origin is dict and isinstance(value, dict):
            return {name: _value(inner[1] if inner else Any, one) for name, one in value.items()}
    return value


def _check_charset(run: Statements, key: str, group: str) -> None:
    """Refuse texts that the connection would change on their way."""
    beyond_utf8mb3 = max(key + group) > "\uffff"
    if beyond_utf8mb3 and run.dialect.charset and run.read(run.dialect.charset)[0][0] != "utf8mb4":
        rule = f"{key!r} or its group needs a connection with charset=utf8mb4"
        raise InvalidMessage("idempotency_key", rule)


def _check_name(field: str, value: str) -> None:
    if not isinstance(value, str) or not 1 <= len(value) <= 255 or not value.isprintable():
        raise InvalidMessage(field, "must be a text of 1 to 255 printable characters")
