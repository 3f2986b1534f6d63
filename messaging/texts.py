"""Texts of unknown origin and length, made fit to be shown, sent and stored."""

from __future__ import annotations

from traceback import TracebackException

from reliable_celery.texts import storable as storable

#: Characters of a message as it is shown: in Flower, in a header, in a list.
SHOWN = 1_000

#: Characters of an error, and of its traceback, that are kept.
MAX_ERROR = 2_000
MAX_TRACE = 20_000


def cut(text: str, length: int = SHOWN) -> str:
    """Return at most `length` characters of a text; where something is left out, it says so.

    Whatever is sent only to be shown goes through here: a header that is too long makes a dead letter.
    """
    return text if len(text) <= length else f"{text[: length - 1]}…"


def cut_middle(text: str, length: int) -> str:
    """Return the beginning and the end of a text, at most `length` characters together."""
    half = (length - 3) // 2
    return text if len(text) <= length else f"{text[:half]}\n…\n{text[-half:]}"


def class_name(value: object) -> str:
    """Return the name of a value's class, which the class itself may have overridden."""
    name: str = type.__dict__["__name__"].__get__(type(value))
    return name


def trace(error: BaseException) -> str:
    """Return an error's traceback with its causes, fit for a text column; of a long one both ends."""
    try:
        parts = TracebackException.from_exception(error).format()
        text = "".join(cut(part, MAX_ERROR) for part in parts)
    except BaseException as unshown:  # noqa: BLE001  what is shown of an error may raise anything
        text = f"The traceback cannot be shown: {class_name(unshown)}"
    return cut_middle(storable(text), MAX_TRACE)
