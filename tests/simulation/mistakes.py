"""Errors that no schedule can cause: whoever wrote the code has made a mistake."""

from __future__ import annotations

import traceback

import psycopg2
from redis.exceptions import NoScriptError, ResponseError
from sqlalchemy.exc import DBAPIError, StatementError

from tests.simulation.scheduler import Broken, current

KINDS = (TypeError, NameError, AttributeError, ImportError, psycopg2.ProgrammingError)


class Mistake(Broken):
    """The code that runs is wrong in itself: of a bug that was planted this proves nothing."""


def is_mistake(error: BaseException | None) -> bool:
    """Tell whether an error is of the code: another call, an unknown name, SQL that does not fit."""
    if isinstance(error, DBAPIError):
        return is_mistake(error.orig)
    if isinstance(error, ResponseError):
        return not isinstance(error, NoScriptError)
    return isinstance(error, (*KINDS, StatementError))


def notice(error: BaseException) -> None:
    """End the schedule where an error is a mistake, even if somebody would catch it."""
    process = current()
    if process is not None and is_mistake(error):
        where = traceback.extract_tb(error.__traceback__)
        at = f" at {where[-1].name}, line {where[-1].lineno}" if where else ""
        process.scheduler.end_with(Mistake(f"{type(error).__name__}: {error}{at}"))
