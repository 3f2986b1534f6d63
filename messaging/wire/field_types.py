"""The types that a field of a message may have: those whose values survive JSON."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from datetime import date, datetime
from functools import reduce
from math import isfinite
from operator import or_
from types import GenericAlias, NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import AfterValidator, BeforeValidator, Field, Strict, WithJsonSchema

from messaging.messages import Text, Whole
from messaging.texts import storable

#: Types that look like another one in JSON. A union must not have both.
IN_JSON: dict[Any, Any] = {date: str, datetime: str, tuple: list}
#: The types of values that `Literal` may have.
LITERALS = {str, int, bool, NoneType}

ISO_DATE = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)
ISO_TIME = re.compile(
    r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}(:\d{2}(\.\d{1,6})?)?(Z|[+-]\d{2}:\d{2}(:\d{2}(\.\d{1,6})?)?)?", re.ASCII
)


def checked(hint: Any, limits: tuple[object, ...] = ()) -> Any:
    """Turn the type of a dataclass's field into one that pydantic validates without coercion.

    `limits` apply to each type of a union but None.

    Raises:
        ValueError: its values do not survive JSON, or a limit is not for this type.
    """
    hint, own = _bare(hint)
    kind, inner, limits = get_origin(hint) or hint, get_args(hint), (*own, *limits)
    if kind in (Union, UnionType):
        _check_union(inner)
        return reduce(or_, (checked(one, limits) for one in inner))
    rules = [] if kind is NoneType else _rules(kind, limits)
    if kind in (str, int, float, bool):
        return Annotated[(kind, Strict(), *rules)]
    if kind in (date, datetime):
        return _IsoDate if kind is date else _IsoTime
    if kind is Any:
        return Annotated[Any, AfterValidator(_storable)]
    if kind is NoneType or (kind is Literal and {type(one) for one in inner} <= LITERALS):
        return hint
    if kind is list:
        return Annotated[GenericAlias(list, checked(*inner or (Any,))), Strict()]
    if kind is tuple:  # not strict: in JSON it is a list
        return GenericAlias(tuple, tuple(one if one is ... else checked(one) for one in inner or (Any, ...)))
    if kind is dict and (not inner or _bare(inner[0])[0] is str):
        return Annotated[GenericAlias(dict, tuple(map(checked, inner or (str, Any)))), Strict()]
    raise ValueError(
        f"{_shown(hint)} does not survive JSON: use str, int, float, bool, date, datetime, Literal, or list,"
        " tuple and dict of these"
    )


def _bare(hint: Any) -> tuple[Any, tuple[object, ...]]:
    """Return a type without its limits and without names such as `NewType`, and the limits."""
    limits: tuple[object, ...] = ()
    while True:
        if get_origin(hint) is Annotated:
            hint, limits = hint.__origin__, (*hint.__metadata__, *limits)
        elif named := getattr(hint, "__supertype__", None) or getattr(hint, "__value__", None):
            hint = named
        else:
            return hint, limits


def _check_union(members: Iterable[Any]) -> None:
    kinds = [get_origin(hint) or hint for hint, _ in map(_bare, members)]
    in_json = [IN_JSON.get(kind, kind) for kind in kinds if kind is not Literal]
    if len(set(in_json)) < len(in_json):
        names = ", ".join(map(_shown, kinds))
        raise ValueError(f"two of the types {names} look the same in JSON")


def _rules(kind: Any, limits: Collection[object]) -> list[Any]:
    rules: list[Any] = [Field(allow_inf_nan=False)] if kind is float else []
    if kind is str and not any(isinstance(limit, Text) for limit in limits):
        rules.append(AfterValidator(_storable))
    for limit in limits:
        if isinstance(limit, Text) and kind is str:
            rules += [
                Field(min_length=limit.min_length, max_length=limit.max_length),
                AfterValidator(_printable),
            ]
        elif isinstance(limit, Whole) and kind is int:
            rules.append(Field(ge=limit.minimum, le=limit.maximum))
        elif isinstance(limit, Text | Whole):
            raise ValueError(
                f"{limit!r} is not a limit for {_shown(kind)}: write it beside the type it is for"
            )
    return rules


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("must have printable characters only")
    return text


def _storable(value: Any) -> Any:
    """Refuse what PostgreSQL stores in no event: the sender would be told that it rejected the command."""
    match value:
        case str() if storable(value) != value:
            raise ValueError("must not have the character U+0000 or half of a surrogate pair")
        case float() if not isfinite(value):
            raise ValueError("must not have a number that is not finite")
        case list():
            list(map(_storable, value))
        case dict():
            list(map(_storable, (*value, *value.values())))
    return value


def _iso(kind: type[date], pattern: re.Pattern[str], name: str, shape: str, schema: str) -> Any:
    """Return a type of times that are ISO text in JSON."""

    def read(value: object) -> object:
        if type(value) is kind:
            return value
        if not isinstance(value, str) or not pattern.fullmatch(value):
            raise ValueError(f"must be a {name} as {shape}")
        try:
            return kind.fromisoformat(value)
        except ValueError:
            raise ValueError(f"must be a {name} of the calendar, as {shape}") from None

    as_text = WithJsonSchema({"type": "string", "format": schema}, mode="validation")
    return Annotated[kind, BeforeValidator(read), as_text]


_IsoDate = _iso(date, ISO_DATE, "date", "YYYY-MM-DD", "date")
_IsoTime = _iso(datetime, ISO_TIME, "time", "YYYY-MM-DDThh:mm:ss+hh:mm", "date-time")


def _shown(hint: Any) -> str:
    return hint.__qualname__ if isinstance(hint, type) else str(hint)
