"""What an operator does to failed deliveries: re-run, discard, correct. Each action is recorded."""

from __future__ import annotations

import getpass
import json
import socket
from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Engine, text

from messaging.delivery import Delivery, Status, new_id
from messaging.errors import MessagingError, UnknownMessage
from messaging.messages import Event, to_dict
from messaging.operator.filters import DeliveryFilter
from messaging.postgres.deliveries import PUT_BACK
from messaging.project import Project
from messaging.validation import from_dict


class NotFailed(MessagingError):
    """Only a failed delivery can be re-run, discarded or corrected."""


def here() -> str:
    """Return who runs this program, as `name@host`."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        name = "unknown"
    return f"{name}@{socket.gethostname()}"


@dataclass(frozen=True)
class DeliveryActions:
    """Changes to failed deliveries; those that are done, running or pending are never touched."""

    engine: Engine
    actor: str

    def clock(self) -> datetime:
        """Return the database's time: an operation that begins now leaves later failures alone."""
        with self.engine.connect() as connection:
            now: datetime = connection.execute(text("SELECT clock_timestamp()")).scalar_one()
        return now

    def put_back(
        self, chosen: DeliveryFilter, before: datetime, limit: int, grace_s: float
    ) -> list[Delivery]:
        """Put failed deliveries back to pending, those that failed first, and return them for sending.

        Args:
            before: only those that failed before this, so that one that fails again is not taken twice.
            limit: at most that many.
            grace_s: seconds until the relay sends what the caller could not.
        """
        query = text(f"WITH chosen AS ({_failed(chosen)}), {PUT_BACK}")
        facts = {
            "before": before,
            "limit": limit,
            "grace_s": grace_s,
            "automatic": False,
            "actor": self.actor,
        }
        with self.engine.begin() as connection:
            return [Delivery(*row) for row in connection.execute(query, {**chosen.facts, **facts})]

    def rerun_since(self, began: datetime, limit: int) -> tuple[str, ...]:
        """Return the ids of what this actor put back since then, the last `limit` of them."""
        query = text(
            "SELECT delivery_id::text AS id FROM actions WHERE at >= :began AND actor = :actor"
            " AND action = 'rerun' ORDER BY actions.id DESC LIMIT :limit"
        )
        with self.engine.connect() as connection:
            rows = connection.execute(query, {"began": began, "actor": self.actor, "limit": limit})
            return tuple(row.id for row in rows)

    def discard(self, chosen: DeliveryFilter, before: datetime, limit: int, reason: str) -> list[str]:
        """Discard failed deliveries for good, with the reason; return their ids."""
        query = text(f"""
            WITH chosen AS ({_failed(chosen)}), gone AS (
                UPDATE deliveries SET status = 'discarded', finished_at = now(), reason = :reason
                FROM chosen WHERE deliveries.id = chosen.id AND status = 'failed' RETURNING deliveries.id
            )
            INSERT INTO actions (delivery_id, action, actor, reason)
            SELECT id, 'discard', :actor, :reason FROM gone RETURNING delivery_id::text AS id
            """)
        facts = {"before": before, "limit": limit, "reason": reason, "actor": self.actor}
        with self.engine.begin() as connection:
            return [row.id for row in connection.execute(query, {**chosen.facts, **facts})]

    def edit(
        self, project: Project, delivery_id: str, changes: Mapping[str, Any], grace_s: float
    ) -> tuple[Delivery, str]:
        """Replace a failed delivery with a corrected copy, which records its original.

        Returns the copy, to be sent, and the corrected event as text.

        Raises:
            NotFailed: it is in another state, or no delivery has this id.
            UnknownMessage: this release has no such event.
            InvalidMessage: a changed field breaks a rule of the event.
        """
        with self.engine.begin() as connection:
            old = _lock_failed(connection, delivery_id)
            event = _corrected(project, old, changes)
            copy = Delivery(
                new_id(), old.event_type, to_dict(event), old.handler, old.correlation_id, old.causation_id
            )
            reason = f"replaced by {copy.id} with {_listed(changes)}"
            facts = {"old": delivery_id, "event_id": new_id(), "grace_s": grace_s, "actor": self.actor}
            row = {**vars(copy), "payload": json.dumps(copy.payload), "reason": reason}
            connection.execute(REPLACE, {**facts, **row})
        return copy, repr(event)


def _failed(chosen: DeliveryFilter) -> str:
    return (
        f"SELECT id FROM deliveries WHERE status = 'failed' AND finished_at <= :before{chosen.sql}"
        " ORDER BY finished_at LIMIT :limit FOR UPDATE SKIP LOCKED"
    )


def _lock_failed(connection: Connection, delivery_id: str) -> Any:
    query = text("SELECT * FROM deliveries WHERE id = CAST(:id AS uuid) FOR UPDATE")
    row = connection.execute(query, {"id": delivery_id}).one_or_none()
    if row is None:
        raise NotFailed(f"There is no delivery {delivery_id}")
    if row.status != Status.FAILED:
        raise NotFailed(f"Delivery {delivery_id} is {row.status}; only a failed one can be corrected")
    return row


def _corrected(project: Project, old: Any, changes: Mapping[str, Any]) -> Event:
    """Return the event with these changes; fields that an older release stored and this one lacks go."""
    kind = project.bus.event_types.get(old.event_type)
    if kind is None:
        raise UnknownMessage(f"This release has no event {old.event_type}")
    names = {field.name for field in fields(kind)}
    kept = {name: value for name, value in old.payload.items() if name in names}
    return from_dict(kind, {**kept, **changes})


def _listed(changes: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in changes.items())


REPLACE = text("""
WITH copy AS (
    INSERT INTO deliveries (id, event_id, event_type, payload, handler, due_at, grace_s,
                            correlation_id, causation_id, edited_from)
    VALUES (:id, :event_id, :event_type, :payload, :handler,
            now() + make_interval(secs => :grace_s), :grace_s, :correlation_id, :causation_id, :old)
), original AS (
    UPDATE deliveries SET status = 'discarded', finished_at = now(), reason = :reason WHERE id = :old
)
INSERT INTO actions (delivery_id, action, actor, reason) VALUES (:old, 'edit', :actor, :reason)
""")
