"""Waiting with a deadline, for servers that start and for effects that arrive: never a bare sleep."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class NotInTimeError(AssertionError):
    """A condition did not come true in time; the text names it, the time limit and what was last seen."""


def eventually(check: Callable[[], T], timeout: float = 30.0, what: str = "", every: float = 0.05) -> T:
    """Call `check` until it returns something true, and return that.

    `timeout` and `every` are seconds. An exception from `check` means "not yet"; the last one is named and
    chained when the time is up, so that `lambda: assert_something()` works as well as a plain condition.
    """
    deadline = time.monotonic() + timeout
    while True:
        last_error: Exception | None = None
        seen: object = None
        try:
            result = check()
            if result:
                return result
            seen = result
        except Exception as error:  # noqa: BLE001 - any error means "not yet", until the deadline
            last_error = error
        if time.monotonic() >= deadline:
            raise _too_late(what, timeout, seen, last_error) from last_error
        time.sleep(every)


def _too_late(what: str, timeout: float, seen: object, error: Exception | None) -> NotInTimeError:
    """Name the condition and what was last seen."""
    saw = f"{type(error).__name__}: {error}" if error else f"saw {seen!r}"
    return NotInTimeError(f"{what or 'what was waited for'} did not happen within {timeout:g} s; last: {saw}")
