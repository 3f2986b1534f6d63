"""Validation: turn untrusted arguments into messages, or raise `InvalidMessage`."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Hashable, Mapping, Sequence
from datetime import date
from functools import cache
from typing import Annotated, Any, TypeVar, cast, get_args, get_origin, get_type_hints

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Strict,
    ValidationError,
    WithJsonSchema,
    create_model,
)

from messaging.errors import InvalidMessage, MessagingError, describe
from messaging.messages import Message, Text, Whole

M = TypeVar("M", bound=Message)

ISO_DATE = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)


def parse(kind: type[M], args: object, fields: object, *, ignore_unknown: bool = False) -> M:
    """Build a message from a task's arguments; positional ones follow the order of its fields.

    Raises:
        InvalidMessage: naming the first field that breaks a rule, and the rule.
    """
    return from_dict(kind, _named(kind, args, fields), ignore_unknown=ignore_unknown)


def from_dict(kind: type[M], fields: Mapping[str, Any], *, ignore_unknown: bool = False) -> M:
    """Build a message from JSON values; `ignore_unknown` allows fields that an older release stored.

    Raises:
        InvalidMessage: naming the first field that breaks a rule, and the rule.
        MessagingError: raised by the class itself.
    """
    try:
        checks = _model(cast("Hashable", kind), "ignore" if ignore_unknown else "forbid")
        valid = checks.model_validate(fields)
        return kind(**{name: getattr(valid, name) for name in checks.model_fields})
    except ValidationError as error:
        raise _first_broken_rule(error) from None
    except MessagingError:
        raise
    except Exception as error:
        raise InvalidMessage("message", f"cannot be built: {describe(error)}") from error


def model(kind: type[Message]) -> type[BaseModel]:
    """Return the pydantic model of a message class, for validation and its JSON schema."""
    return _model(cast("Hashable", kind), "forbid")


@cache
def _model(kind: Any, extra: Any) -> type[BaseModel]:
    hints = get_type_hints(kind, include_extras=True)
    fields: dict[str, Any] = {
        field.name: (
            _checked(hints[field.name]),
            ... if field.default is dataclasses.MISSING else field.default,
        )
        for field in dataclasses.fields(kind)
    }
    config = ConfigDict(extra=extra, title=kind.__name__)
    return create_model(kind.__name__, __config__=config, __doc__=kind.__doc__, **fields)


def _checked(hint: Any) -> Any:
    """Turn a dataclass field's type into one that pydantic validates without coercion."""
    if get_origin(hint) is Annotated:
        base, *limits = get_args(hint)
        return Annotated[(base, Strict(), *(rule for limit in limits for rule in _rules(limit)))]
    if hint == date:
        return _IsoDate
    if hint == date | None:
        return _IsoDate | None
    return Annotated[hint, Strict()]


def _rules(limit: object) -> list[Any]:
    if isinstance(limit, Text):
        return [Field(min_length=limit.min_length, max_length=limit.max_length), AfterValidator(_printable)]
    if isinstance(limit, Whole):
        return [Field(ge=limit.minimum, le=limit.maximum)]
    return []


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("must have printable characters only")
    return text


def _iso_date(value: object) -> object:
    if type(value) is date:
        return value
    if not isinstance(value, str) or not ISO_DATE.fullmatch(value):
        raise ValueError("must be a date as YYYY-MM-DD")
    try:
        return date.fromisoformat(value)
    except ValueError:
        raise ValueError("must be a date of the calendar, as YYYY-MM-DD") from None


_IsoDate = Annotated[
    date, BeforeValidator(_iso_date), WithJsonSchema({"type": "string", "format": "date"}, mode="validation")
]


def _named(kind: type[Message], args: object, fields: object) -> dict[str, Any]:
    names = [field.name for field in dataclasses.fields(kind)]
    if not isinstance(args, Sequence) or isinstance(args, str | bytes):
        raise InvalidMessage("args", "must be a list")
    if not isinstance(fields, Mapping):
        raise InvalidMessage("kwargs", "must be an object")
    if len(args) > len(names):
        raise InvalidMessage("args", f"has {len(args)} values, {kind.__name__} has {len(names)} fields")
    named = dict(zip(names, args, strict=False))
    for name in named:
        if name in fields:
            raise InvalidMessage(name, "is given twice")
    return {**named, **fields}


_RULES = {
    "missing": "is missing",
    "extra_forbidden": "is not a field of this message",
    "string_type": "must be a text",
    "int_type": "must be a whole number",
    "string_too_short": "must have at least {min_length} character",
    "string_too_long": "must have at most {max_length} characters",
    "greater_than_equal": "must be at least {ge}",
    "less_than_equal": "must be at most {le}",
    "value_error": "{error}",
    "string_unicode": "must have printable characters only",
}


def _first_broken_rule(error: ValidationError) -> InvalidMessage:
    details = error.errors(include_url=False, include_input=False)[0]
    place = _readable(".".join(str(part) for part in details["loc"][:1]) or "message")
    rule = _RULES.get(details["type"])
    text = rule.format(**details.get("ctx", {})) if rule else details["msg"]
    return InvalidMessage(place, text)


def _readable(name: str) -> str:
    """Return an untrusted field name, safe for a log line."""
    return name if name.isprintable() and len(name) <= 60 else repr(name[:60])
