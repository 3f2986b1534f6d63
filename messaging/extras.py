"""The package's extras: a program that lacks one says in one line how to install it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from messaging import __version__


class MissingExtra(ImportError):
    """A required package is not installed; the text says what to install."""


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """Around imports: raise `MissingExtra` if a package of that extra is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        if not error.name or find_spec(error.name.partition(".")[0]):  # installed, but incomplete
            raise
        raise MissingExtra(
            f"{error.name} is missing from this installation of allocation {__version__}:"
            f" install allocation[{extra}]"
        ) from error


@contextmanager
def program(extra: str) -> Iterator[None]:
    """Around a program's imports: like `needs`, but exit with that line instead of a traceback."""
    try:
        with needs(extra):
            yield
    except MissingExtra as error:
        raise SystemExit(str(error)) from None
