"""Filters of deliveries, as SQL conditions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, Self

from messaging.delivery import Status
from messaging.texts import cut, storable

#: The group of a failed delivery; for one that an older release has failed, from the error's first line.
GROUP = r"""
coalesce(failure_group, left(md5(handler || regexp_replace(
    split_part(coalesce(last_error, ''), E'\n', 1), '[0-9]+', '#', 'g')), 10))"""

#: One condition per field of `DeliveryFilter`. A delivery's end is the last change of its state.
CONDITIONS = {
    "group": f"{GROUP} = :group",
    "handlers": "handler = ANY(:handlers)",
    "event": "event_type = :event",
    "error": "position(lower(:error) in lower(last_error)) > 0",
    "since": "coalesce(finished_at, created_at) >= :since",
    "until": "coalesce(finished_at, created_at) < :until",
    "older_than_s": "created_at < {now} - make_interval(secs => :older_than_s)",
    "correlation": "correlation_id = :correlation",
    "ids": "id = ANY(CAST(:ids AS uuid[]))",
}


@dataclass(frozen=True)
class DeliveryFilter:
    """None does not filter, nor do empty `ids` or `handlers`; an empty text does."""

    handlers: tuple[str, ...] = ()  # one handler, by its name and those it had before
    event: str | None = None  # the event's class name
    error: str | None = None  # a part of the last error, case-insensitive
    since: datetime | None = None  # ended (for pending ones: raised) at or after this
    until: datetime | None = None  # ended (for pending ones: raised) before this
    older_than_s: float | None = None  # seconds since the event was raised
    correlation: str | None = None  # the id of the original command
    group: str | None = None  # of failures; `FailureGroup.id`
    ids: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return the conditions as they are written in the audit."""
        given = ((one.name, getattr(self, one.name)) for one in fields(self))
        shown = [
            f"{name}={', '.join(value) if isinstance(value, tuple) else value}"
            for name, value in given
            if value is not None and value != ()
        ]
        return cut(" ".join(shown) or "all", 500)

    @property
    def stored(self) -> dict[str, Any]:
        """Return the conditions that are set, as JSON values."""
        return {
            name: value.isoformat() if isinstance(value, datetime) else value
            for name, value in self.facts.items()
        }

    @classmethod
    def from_stored(cls, stored: Mapping[str, Any]) -> Self:
        """Return the filter of `stored`.

        Raises:
            ValueError: it has a condition that this release lacks; without it, more would match.
        """
        if unknown := stored.keys() - {field.name for field in fields(cls)}:
            raise ValueError(f"This release cannot filter by {', '.join(sorted(unknown))}")
        read: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in stored.items()
        }
        for moment in read.keys() & {"since", "until"}:
            read[moment] = datetime.fromisoformat(read[moment])
        return cls(**read)

    @property
    def facts(self) -> dict[str, Any]:
        """Return the values of the conditions that are set."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: _bound(value) for name, value in found.items() if value is not None and value != ()}

    @property
    def sql(self) -> str:
        """Return the conditions that are set, to append to a WHERE clause; `facts` has their values."""
        return self.sql_at("now()")

    def sql_at(self, now: str) -> str:
        """Return them as of another time, which is given in SQL."""
        return "".join(f" AND {CONDITIONS[name].format(now=now)}" for name in self.facts)


def _bound(value: Any) -> Any:
    """Convert a condition's value to the type that the driver and the tables use."""
    if isinstance(value, tuple):
        return [storable(item) for item in value]
    return storable(value) if isinstance(value, str) else value


#: The sort order of each state's index, so that its newest rows are found without reading the others.
#: Done deliveries use the primary key: version 7 ids sort by time.
SORTED_BY = {
    Status.PENDING: "due_at",
    Status.WAITING: "due_at",
    Status.FAILED: "finished_at",
    Status.DISCARDED: "finished_at",
    Status.DONE: "id",
}
