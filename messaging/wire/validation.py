"""Validation: turn untrusted arguments into messages, or raise `InvalidMessage`."""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Mapping, Sequence
from functools import cache
from itertools import takewhile
from typing import Any, TypeVar, cast, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from messaging.errors import InvalidMessage, MessagingError, describe
from messaging.messages import Message
from messaging.wire.field_types import checked

M = TypeVar("M", bound=Message)


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
    """Return the pydantic model of a message class, for validation and its JSON schema.

    Raises:
        ValueError: a field has a type that cannot be checked; the text names it.
    """
    return _model(cast("Hashable", kind), "forbid")


@cache
def _model(kind: Any, extra: Any) -> type[BaseModel]:
    try:
        hints = get_type_hints(kind, include_extras=True)
    except Exception as error:
        raise ValueError(f"The types of {kind.__name__} cannot be read: {describe(error)}") from error
    fields: dict[str, Any] = {
        field.name: (_type_of(kind, field, hints[field.name]), _default_of(field))
        for field in dataclasses.fields(kind)
    }
    config = ConfigDict(extra=extra, title=kind.__name__)
    return create_model(kind.__name__, __config__=config, __doc__=kind.__doc__, **fields)


def _type_of(kind: type[Message], field: dataclasses.Field[Any], hint: Any) -> Any:
    place = f"The field {field.name} of {kind.__name__}"
    if not field.init:
        raise ValueError(f"{place} has init=False: a message is built from all its fields")
    try:
        return checked(hint)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from None


def _default_of(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return Field(default_factory=field.default_factory)
    return ... if field.default is dataclasses.MISSING else field.default


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
    "bool_type": "must be true or false",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
    "dict_type": "must be an object",
    "literal_error": "must be {expected}",
}


def _first_broken_rule(error: ValidationError) -> InvalidMessage:
    details = error.errors(include_url=False, include_input=False)[0]
    field, *inside = details["loc"] or ("message",)
    items = takewhile(lambda part: isinstance(part, int), inside)  # of lists: what follows names a type
    place = _readable(".".join(map(str, (field, *items))))
    rule = _RULES.get(details["type"])
    text = rule.format(**details.get("ctx", {})) if rule else details["msg"]
    return InvalidMessage(place, text)


def _readable(name: str) -> str:
    """Return an untrusted field name, safe for a log line."""
    return name if name.isprintable() and len(name) <= 60 else repr(name[:60])
