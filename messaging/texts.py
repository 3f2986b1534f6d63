"""Make texts of unknown origin and length safe to show, send and store."""

from __future__ import annotations

from traceback import TracebackException

from reliable_celery.texts import storable as storable

#: Characters of a message shown in Flower, in a header, or in a list.
SHOWN = 1_000

#: Characters stored of an error, and of its traceback.
MAX_ERROR = 2_000
MAX_TRACE = 20_000


def cut(text: str, length: int = SHOWN) -> str:
    """Return at most `length` characters of a text, and mark the cut.

    Use it for everything that is sent only to be shown: too long a header makes a message a dead letter.
    """
    return text if len(text) <= length else f"{text[: length - 1]}…"


def one_line(text: str) -> str:
    """Return a text from a sender for the log: in one line, without control characters, and not too long."""
    return cut(text if text.isprintable() else repr(text))


def cut_middle(text: str, length: int) -> str:
    """Return the beginning and the end of a text, at most `length` characters in total."""
    half = (length - 3) // 2
    return text if len(text) <= length else f"{text[:half]}\n…\n{text[-half:]}"


def class_name(value: object) -> str:
    """Return the real name of a value's class, even if the class overrides it."""
    name: str = type.__dict__["__name__"].__get__(type(value))
    return name


def text_of(error: BaseException) -> str:
    """Return an error's text, or why it has none."""
    try:
        return str.__str__(str(error))  # of the class `str` itself
    except BaseException as unshown:  # noqa: BLE001  an error's __str__ may raise anything
        return f"its text cannot be shown: {class_name(unshown)}"


def repr_of(value: object) -> str:
    """Return a value's `repr`, or its class and why it has none."""
    try:
        return str.__str__(repr(value))
    except BaseException as unshown:  # noqa: BLE001  as above
        return f"<{class_name(value)}: it cannot be shown: {class_name(unshown)}>"


def trace(error: BaseException) -> str:
    """Return an error's traceback with its causes, safe for a text column; both ends of a long one."""
    try:
        parts = TracebackException.from_exception(error).format()
        text = "".join(cut(part, MAX_ERROR) for part in parts)
    except BaseException as unshown:  # noqa: BLE001  formatting an error may raise anything
        text = f"The traceback cannot be shown: {class_name(unshown)}"
    return cut_middle(storable(text), MAX_TRACE)
