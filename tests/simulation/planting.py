"""Puts bugs into the real code for a while, and refuses those that would be found by their own mistakes."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

from sqlalchemy import TextClause, text

from messaging.postgres.transaction import Statement
from tests.simulation.mistakes import notice

Parameter = inspect.Parameter
BY_POSITION = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)


def put(stack: ExitStack, target: Any, name: str, value: Any) -> None:
    """Replace an attribute; a function only by one that can be called in every way in which it can.

    Raises:
        TypeError: the replacement takes other arguments.
    """
    if (found := _function(target, name)) is not None:
        if (problem := misfit(found, _unwrapped(value))) is not None:
            raise TypeError(f"The replacement of {name} {problem}")
        value = _watched(value)
    stack.enter_context(patch.object(target, name, value))


def without(stack: ExitStack, module: Any, name: str, *parts: str, instead: str = "") -> None:
    """Replace parts of the text of a statement."""
    found = getattr(module, name)
    sql = (
        found.text
        if isinstance(found, TextClause)
        else sql_of(found)[1]
        if isinstance(found, Statement)
        else found
    )
    for part in parts:
        assert part in sql, f"{part!r} is not in {name}"
        sql = sql.replace(part, instead)
    if isinstance(found, TextClause):
        put(stack, module, name, text(sql))
    elif isinstance(found, Statement):
        put(stack, module, name, Statement(sql, *sql_of(found)[0]))
    else:
        put(stack, module, name, sql)


def sql_of(statement: Statement) -> tuple[list[str], str]:
    """Return the types and the text of a prepared statement."""
    found = re.match(r"PREPARE \w+ \((.*?)\) AS (.*)", statement._prepare, re.DOTALL)
    assert found
    return found.group(1).split(", "), found.group(2)


def misfit(original: Callable[..., Any], replacement: Callable[..., Any]) -> str | None:
    """Return a call of `original` that its replacement does not take; None if it takes all of them.

    Its parameters may have other names: that would only be found where one is passed by its name.
    """
    taken = inspect.signature(replacement)
    wanted = list(inspect.signature(original).parameters.values())
    required = [one for one in wanted if one.default is Parameter.empty]
    for some in (required, wanted):
        count = sum(1 for one in some if one.kind in BY_POSITION)
        names = [one.name for one in some if one.kind is Parameter.KEYWORD_ONLY]
        try:
            taken.bind(*[None] * count, **dict.fromkeys(names))
        except TypeError as error:
            return f"takes other arguments: {error}"
    return None


def _function(target: Any, name: str) -> Callable[..., Any] | None:
    """Return the function that is replaced, with `self` or `cls` among its parameters; None if it is none."""
    found = _unwrapped(inspect.getattr_static(target, name))
    return found if inspect.isfunction(found) else None


def _unwrapped(value: Any) -> Any:
    return value.__func__ if isinstance(value, classmethod | staticmethod) else value


def _watched(value: Any) -> Any:
    """Have mistakes of a replacement end the schedule, whoever would catch them."""
    function = _unwrapped(value)

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except Exception as error:
            notice(error)
            raise

    return type(value)(run) if isinstance(value, classmethod | staticmethod) else run
