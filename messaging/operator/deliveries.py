"""Deliveries as an operator reads them: lists of them, and the story of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Connection, Engine, text

from messaging.bus import MessageBus
from messaging.delivery import Delivery, Status
from messaging.errors import MessagingError
from messaging.postgres.filters import GROUP, SORTED_BY, DeliveryFilter
from messaging.texts import storable

COLUMNS = """
id::text, event_type, payload, handler, status, attempts, reruns, created_at, finished_at, due_at, worker,
last_error, correlation_id, causation_id, edited_from::text, reason, waits_for, limit_key"""

#: Characters of an error that distinguish causes.
CAUSE = 120

#: How many deliveries a chain of causes may have; a longer one is a loop.
MAX_CHAIN = 50


@dataclass(frozen=True)
class FailedAttempt:
    """One failed attempt; `run` counts the re-runs before it."""

    run: int
    number: int
    at: datetime
    worker: str
    error: str
    traceback: str


@dataclass(frozen=True)
class Action:
    """An action of an operator, or of the schedule, on a delivery."""

    at: datetime
    action: str
    actor: str
    reason: str | None


@dataclass(frozen=True)
class Cause:
    """The original command, and its result."""

    task_id: str
    command: str
    result: Any
    at: datetime


@dataclass(frozen=True)
class Story:
    """Everything known about one delivery."""

    delivery: Delivery
    attempts: list[FailedAttempt]
    actions: list[Action]
    cause: Cause | None  # None once its answer has been pruned
    through: list[Delivery] = field(default_factory=list)  # deliveries between the command and this one
    related: list[Delivery] = field(default_factory=list)  # others caused by the same command


@dataclass(frozen=True)
class FailureGroup:
    """Failed deliveries of a handler that probably have the same cause."""

    id: str
    handler: str
    count: int
    first: datetime  # when the first of them failed
    last: datetime
    example: str  # the id of one of them
    error: str  # its error's first line


class UnknownName(MessagingError):
    """No handler or event has this name, in this release or in a stored delivery."""


@dataclass(frozen=True)
class DeliveryQueries:
    """An operator's queries about deliveries; all are read-only."""

    engine: Engine

    def require_known(self, bus: MessageBus, chosen: DeliveryFilter) -> None:
        """Refuse a filter with a misspelled name, whose empty result would look as if nothing had failed.

        Raises:
            UnknownName: it names those that exist.
        """
        self._require_name("handler", "handler", next(iter(chosen.handlers), None), set(bus.event_handlers))
        self._require_name("event", "event_type", chosen.event, set(bus.event_types))

    def _require_name(self, what: str, column: str, name: str | None, known: set[str]) -> None:
        """Query the table only for names that this release lacks: earlier releases may have had them."""
        if name is None or name in known:
            return
        stored = text(f"SELECT EXISTS (SELECT FROM deliveries WHERE {column} = :name)")
        failed = text(f"SELECT DISTINCT {column} FROM deliveries WHERE status = 'failed'")
        with self.engine.connect() as connection:
            known |= set(connection.execute(failed).scalars())
            # The second question may read the whole table.
            if name in known or connection.execute(stored, {"name": storable(name)}).scalar_one():
                return
        raise UnknownName(f"No {what} is called {name!r}; there are {', '.join(sorted(known))}")

    def find(
        self,
        chosen: DeliveryFilter,
        statuses: Sequence[Status] = tuple(Status),
        limit: int = 50,
        skip: int = 0,
    ) -> list[Delivery]:
        """Return the newest `limit` deliveries in these states, those that ended last first, after `skip`."""
        # One query per state, since each state has an index of its own (done has the primary key).
        parts = " UNION ALL ".join(f"({_of_status(status, chosen)})" for status in statuses)
        query = text(
            f"SELECT * FROM ({parts}) found ORDER BY coalesce(finished_at, created_at) DESC"
            " LIMIT :limit - :skip OFFSET :skip"
        )
        facts = {**chosen.facts, "limit": limit + skip, "skip": skip}
        with self.engine.connect() as connection:
            return [_row(row) for row in connection.execute(query, facts)]

    def count_failed(self, chosen: DeliveryFilter) -> dict[tuple[str, str], int]:
        """Return how many failed deliveries there are by event and handler, most first."""
        query = text(
            f"SELECT event_type, handler, count(*) FROM deliveries WHERE status = 'failed'{chosen.sql}"
            " GROUP BY 1, 2 ORDER BY 3 DESC, 1, 2"
        )
        with self.engine.connect() as connection:
            return {(event, handler): n for event, handler, n in connection.execute(query, chosen.facts)}

    def groups(self, chosen: DeliveryFilter, limit: int) -> list[FailureGroup]:
        """Return the groups of failed deliveries, the largest first."""
        query = text(
            f"""
            SELECT found.*, left(split_part(coalesce(last_error, ''), E'\\n', 1), {CAUSE}) FROM (
                SELECT {GROUP} AS failures, handler, count(*) AS count, min(finished_at), max(finished_at),
                       (array_agg(id ORDER BY finished_at DESC))[1]::text AS example
                FROM deliveries WHERE status = 'failed'{chosen.sql}
                GROUP BY 1, 2 ORDER BY 3 DESC, 1, 2 LIMIT :limit
            ) found JOIN deliveries ON deliveries.id = CAST(example AS uuid)
            ORDER BY found.count DESC, failures"""
        )
        with self.engine.connect() as connection:
            rows = connection.execute(query, {**chosen.facts, "limit": limit})
            return [FailureGroup(*row) for row in rows]

    def sample(self, chosen: DeliveryFilter, count: int) -> tuple[str, ...]:
        """Return the ids of some failed deliveries, chosen at random."""
        query = text(
            f"SELECT id::text FROM deliveries WHERE status = 'failed'{chosen.sql}"
            " ORDER BY random() LIMIT :limit"
        )
        with self.engine.connect() as connection:
            return tuple(connection.execute(query, {**chosen.facts, "limit": count}).scalars())

    def get(self, delivery_id: str) -> Delivery | None:
        """Return one delivery."""
        return next(iter(self.find(DeliveryFilter(ids=(delivery_id,)), limit=1)), None)

    def story(self, delivery_id: str) -> Story | None:
        """Return everything known about one delivery, None if no delivery has this id."""
        delivery = self.get(delivery_id)
        if delivery is None:
            return None
        through, cause = self._origin(delivery)
        related = self.find(DeliveryFilter(correlation=delivery.correlation_id), limit=100)
        with self.engine.connect() as connection:
            return Story(
                delivery,
                _attempts(connection, delivery_id),
                _actions(connection, delivery_id),
                cause,
                through,
                [row for row in related if row.id != delivery_id],
            )

    def _origin(self, delivery: Delivery) -> tuple[list[Delivery], Cause | None]:
        """Follow causes from a delivery up to the first command."""
        through: list[Delivery] = []
        causation = delivery.causation_id
        for _ in range(MAX_CHAIN):
            cause = self._answered(causation)
            above = None if cause or not is_id(causation) else self.get(causation)
            if above is None:
                return through, cause
            through.append(above)
            causation = above.causation_id
        return through, None

    def _answered(self, task_id: str) -> Cause | None:
        query = text("SELECT task_id, command, result, at FROM inbox WHERE task_id = :id")
        with self.engine.connect() as connection:
            row = connection.execute(query, {"id": task_id}).one_or_none()
        return Cause(*row) if row else None


def is_id(name: str) -> bool:
    """Return whether a text may be a delivery's id; a sender may give its command any id."""
    try:
        return str(UUID(name)) == name
    except ValueError:
        return False


def _of_status(status: Status, chosen: DeliveryFilter) -> str:
    return (
        f"SELECT {COLUMNS} FROM deliveries WHERE status = '{status}'{chosen.sql}"
        f" ORDER BY deliveries.{SORTED_BY[status]} DESC LIMIT :limit"
    )


def _row(row: Any) -> Delivery:
    return Delivery(**{**row._mapping, "status": Status(row.status)})


def _attempts(connection: Connection, delivery_id: str) -> list[FailedAttempt]:
    query = text(
        "SELECT run, number, at, worker, error, traceback FROM attempts WHERE delivery_id = :id"
        " ORDER BY run, number"
    )
    return [FailedAttempt(*row) for row in connection.execute(query, {"id": delivery_id})]


def _actions(connection: Connection, delivery_id: str) -> list[Action]:
    query = text("SELECT at, action, actor, reason FROM actions WHERE delivery_id = :id ORDER BY id")
    return [Action(*row) for row in connection.execute(query, {"id": delivery_id})]
