"""Recreate a message from a log line, read as data: nothing in the line is ever executed."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime, timedelta, timezone
from typing import Any

from messaging.bus import MessageBus
from messaging.errors import InvalidMessage, MessagingError
from messaging.messages import Message
from messaging.wire.validation import parse

#: Longer than the repr of any message with its fields at their limits.
MAX_LENGTH = 100_000


def same_message(bus: MessageBus, line: str, message: Message) -> bool:
    """Return whether a stored repr, perhaps of an older release, equals `message`.

    It is read with the current class: added fields get their defaults, removed fields are ignored.
    """
    if line == repr(message):
        return True
    try:
        return parse_line(bus, line, ignore_unknown=True) == message
    except MessagingError:
        return False


def parse_line(bus: MessageBus, line: str, *, ignore_unknown: bool = False) -> Message:
    """Return the message in a line: its repr alone, or a log line that contains it.

    Values are texts, numbers, None, True, False, dates and times as `datetime.date(y, m, d)`, and lists,
    tuples and dictionaries of these.

    Raises:
        InvalidMessage: the line contains no message of this project, or one that breaks a rule.
        MessagingError: raised by the message's own class.
    """
    kinds: Mapping[str, type[Message]] = {**bus.event_types, **bus.command_types}
    if len(line) > MAX_LENGTH:
        raise InvalidMessage("line", f"is longer than {MAX_LENGTH} characters")
    call = _call(_expression(line, kinds))
    name = call.func.id  # type: ignore[attr-defined]  # `_expression` begins with a name
    fields = {keyword.arg: _value(keyword.value) for keyword in call.keywords if keyword.arg}
    if len(fields) < len(call.keywords):
        raise InvalidMessage("line", "may not have ** in it, or a field twice")
    values = [_value(argument) for argument in call.args]
    return parse(kinds[name], values, fields, ignore_unknown=ignore_unknown)


def _expression(line: str, kinds: Mapping[str, object]) -> str:
    """Return the part of the line that is `Name(…)`, up to its closing parenthesis."""
    names = "|".join(re.escape(name) for name in sorted(kinds, key=len, reverse=True))
    start = re.search(rf"(?<![\w.])(?:{names})\(", line)
    if start is None:
        raise InvalidMessage("line", f"must show a message; there are {', '.join(sorted(kinds))}")
    rest = line[start.start() :]
    depth = 0
    try:
        for token in tokenize.generate_tokens(io.StringIO(rest).readline):
            depth += {"(": 1, ")": -1}.get(token.string, 0) if token.type == tokenize.OP else 0
            if depth == 0 and token.string == ")":
                return "\n".join([*rest.splitlines()[: token.end[0] - 1], _until(rest, token.end)])
    except (tokenize.TokenError, SyntaxError):
        pass
    raise InvalidMessage("line", "is cut off: no parenthesis closes the message")


def _until(text: str, end: tuple[int, int]) -> str:
    return text.splitlines()[end[0] - 1][: end[1]]


def _call(expression: str) -> ast.Call:
    try:
        tree = ast.parse(expression, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        tree = None
    if not isinstance(tree, ast.Call):
        raise InvalidMessage("line", "is not written as Python shows a message")
    return tree


def _value(node: ast.expr) -> Any:
    try:
        match node:
            case ast.Call():
                return _called(node)
            case ast.List():
                return list(map(_value, node.elts))
            case ast.Tuple():
                return tuple(map(_value, node.elts))
            case ast.Dict() if None not in node.keys:
                keys, values = map(_value, node.keys), map(_value, node.values)  # type: ignore[arg-type]
                return dict(zip(keys, values, strict=True))
            case ast.Attribute() if ast.unparse(node) == "datetime.timezone.utc":
                return UTC
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        raise InvalidMessage("line", "has a value that is no plain text, number, date or None") from None


#: What a line may call: `datetime.date(2026, 1, 31)`, also without its module, and what shows a time.
CALLS: Mapping[str, Callable[..., Any]] = {
    "date": date,
    "datetime.date": date,
    "datetime.datetime": datetime,
    "datetime.timedelta": timedelta,
    "datetime.timezone": timezone,
}


def _called(node: ast.Call) -> Any:
    call = CALLS.get(ast.unparse(node.func))
    if call is None:
        raise InvalidMessage("line", "may call nothing but datetime.date and datetime.datetime")
    try:
        return call(*map(_value, node.args), **{each.arg or "": _value(each.value) for each in node.keywords})
    except (ValueError, TypeError, OverflowError, InvalidMessage):
        raise InvalidMessage("line", f"is not a valid date: {ast.unparse(node)[:60]}") from None
