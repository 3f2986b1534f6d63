"""Parse times, ages and texts that an operator writes."""

from __future__ import annotations

import re
from contextlib import suppress
from datetime import UTC, datetime, timedelta

from messaging.texts import storable

UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


def parse_text(text: str) -> str:
    """Return a text in its stored form.

    Raises:
        ValueError: it is blank.
    """
    if not text.strip():
        raise ValueError("it is blank: write some text, or leave the option out")
    return storable(text)


def parse_age(text: str) -> float:
    """Return the seconds of `90s`, `15m`, `2h` or `7d`.

    Raises:
        ValueError: the text is not an age.
    """
    found = re.fullmatch(r"(\d{1,6}(?:\.\d{1,3})?)([smhd])", text, re.ASCII)
    if found is None:
        raise ValueError(f"{text!r} is not an age: write 90s, 15m, 2h or 7d")
    return float(found[1]) * UNITS[found[2]]


def parse_moment(text: str, now: datetime | None = None) -> datetime:
    """Return the time of an ISO 8601 text (default: UTC) or of an age: `2h` is two hours before `now`.

    Raises:
        ValueError: the text is neither.
    """
    with suppress(ValueError, OverflowError):
        return _absolute(text)
    with suppress(ValueError, OverflowError):
        return (now or datetime.now(UTC)) - timedelta(seconds=parse_age(text))
    raise ValueError(f"{text!r} is not a time: write 2026-01-31T10:00 (UTC), or 2h for two hours ago")


def _absolute(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    # PostgreSQL knows fewer offsets from UTC than Python.
    return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
