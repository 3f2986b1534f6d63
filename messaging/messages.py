"""Commands, events, and the limits of their fields."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from datetime import date
from functools import cache
from types import NoneType, UnionType
from typing import Annotated, Any, ClassVar, Union, get_args, get_origin


@dataclass(frozen=True)
class Message:
    """A command or an event as plain values; `eval(repr(message)) == message`.

    A field is a `str`, `int`, finite `float`, `bool`, `date`, `datetime`, `Literal` or None, or a `list`,
    `tuple` or `dict` of these; `Any` is any JSON value. Other types are refused when the app is made.
    """

    #: The field with the key of the aggregate that its handlers lock, if it has one: where messages share a
    #: transaction, they are handled in the order of these keys.
    locks: ClassVar[str | None] = None


@dataclass(frozen=True)
class Command(Message):
    """A request to one handler, named in the imperative; its errors go to its sender."""

    #: The meaning of the result None, for people; senders and scripts get None.
    none_means: ClassVar[str] = "done"


@dataclass(frozen=True)
class Event(Message):
    """A fact, named in the past tense; it has any number of handlers, and nobody waits for them."""


@dataclass(frozen=True)
class Text:
    """Limits of a text field: printable characters only, and their number."""

    min_length: int = 1
    max_length: int = 255


@dataclass(frozen=True)
class Whole:
    """Limits of a whole number, inclusive."""

    minimum: int
    maximum: int = 2_147_483_647  # PostgreSQL's integer


Name = Annotated[str, Text()]

#: The message header with the sender's idempotency key.
IDEMPOTENCY_KEY = "idempotency_key"
#: The message header with the time of sending: seconds since 1970, by the sender's clock.
SENT_AT = "sent_at"
#: Types of most values.
SAME_IN_JSON = frozenset((str, int, float, bool, NoneType))


def to_dict(message: Message) -> dict[str, Any]:
    """Return a message's fields as JSON values; dates and times become ISO text."""
    kind: Any = type(message)
    return {
        name: value if type(value := getattr(message, name)) in SAME_IN_JSON else _json_value(value)
        for name in _names(kind)
    }


@cache
def _names(kind: Any) -> tuple[str, ...]:
    return tuple(field.name for field in fields(kind))


def _json_value(value: Any) -> Any:
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, list | tuple):
        return [_json_value(one) for one in value]
    if isinstance(value, dict):
        return {name: _json_value(one) for name, one in value.items()}
    return value


def types_in(hint: Any) -> Iterator[Any]:
    """Yield the types of a field: those of a union, without limits and without names such as `NewType`."""
    if get_origin(hint) is Annotated:
        yield from types_in(hint.__origin__)
    elif named := getattr(hint, "__supertype__", None) or getattr(hint, "__value__", None):
        yield from types_in(named)
    elif get_origin(hint) in (Union, UnionType):
        for one in get_args(hint):
            yield from types_in(one)
    else:
        yield hint


def task_name(project: str, kind: type[Command]) -> str:
    """Return the task name of a command: `CreateBatch` is `<project>.create_batch`."""
    return f"{project}.{re.sub(r'(?<!^)(?=[A-Z])', '_', kind.__name__).lower()}"
