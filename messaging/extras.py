"""The package's extras: without one, what needs it says in one line how to get it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

from messaging import __version__


class MissingExtra(ImportError):
    """Something needs more than is installed; the text says what to install."""


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """Around imports: raise `MissingExtra` where a package of that extra is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        if not error.name or find_spec(error.name.partition(".")[0]):  # the package is there, but incomplete
            raise
        raise MissingExtra(
            f"{error.name} is missing from this installation of allocation {__version__}:"
            f" install allocation[{extra}]"
        ) from error


@contextmanager
def program(extra: str) -> Iterator[None]:
    """Around the imports of a program: as `needs`, but end with that line instead of a traceback."""
    try:
        with needs(extra):
            yield
    except MissingExtra as error:
        raise SystemExit(str(error)) from None
