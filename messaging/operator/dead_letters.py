"""Messages that no task could read, as an operator sees them: read, replay, discard."""

from __future__ import annotations

import base64
import codecs
import json
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

from celery import Celery
from kombu.serialization import dumps
from sqlalchemy import Connection, Engine, text

from messaging.errors import MessagingError, describe
from messaging.runtime import Runtime
from messaging.texts import storable

#: Bytes of a body, and characters of the headers, that a list shows: a body may have 16 MiB.
HEAD = 4096

SUMMARY = f"""
id::text, reason, task, task_id, queue, content_type, content_encoding, error,
at, replayed_at, discarded_at, discard_reason,
octet_length(body) AS body_bytes, substring(body FROM 1 FOR {HEAD}) AS body_head,
left(headers::text, {HEAD}) AS headers_head"""

#: Properties that belong to the message; the others were written by the transport that carried it.
OWN_PROPERTIES = ("correlation_id", "reply_to", "priority", "expiration")

#: The reason of a letter that a worker wrote itself, about a command that it had accepted.
PARKED = "killed its worker"

#: The condition of each state; each has an index of its own.
STATES = {
    "open": "replayed_at IS NULL AND discarded_at IS NULL",
    "replayed": "replayed_at IS NOT NULL",
    "discarded": "discarded_at IS NOT NULL",
    "all": "true",
}


class NotReplayable(MessagingError):
    """Sending the message again would not help, or was done already."""


@dataclass(frozen=True)
class Summary:
    """One dead letter without its body, as lists show it."""

    id: str
    reason: str
    task: str | None
    task_id: str | None
    queue: str | None
    content_type: str | None
    content_encoding: str | None
    error: str
    at: datetime
    replayed_at: datetime | None
    discarded_at: datetime | None
    discard_reason: str | None
    body_bytes: int
    body_head: bytes  # its first `HEAD` bytes
    headers_head: str  # the first `HEAD` characters of their JSON

    @property
    def state(self) -> str:
        """Return `open`, `replayed` or `discarded`."""
        return "discarded" if self.discarded_at else "replayed" if self.replayed_at else "open"

    @property
    def shown_head(self) -> str:
        """Return the beginning of the body as text where it is text, else in base64."""
        return _shown(self.body_head, is_all=self.body_bytes <= len(self.body_head))


@dataclass(frozen=True)
class Letter(Summary):
    """One dead letter with all of its message."""

    headers: dict[str, Any]
    properties: dict[str, Any]
    body: bytes

    @property
    def shown_body(self) -> str:
        """Return the body as text where it is text, else in base64."""
        return _shown(self.body)


COLUMNS = {Summary: SUMMARY, Letter: f"{SUMMARY}, headers, properties, body"}
Kind = TypeVar("Kind", Summary, Letter)


@dataclass(frozen=True)
class DeadLetters:
    """Dead letters of one database."""

    engine: Engine

    def find(
        self, state: str = "open", reason: str | None = None, task: str | None = None, limit: int = 50
    ) -> list[Summary]:
        """Return the newest `limit` letters; `state` is one of `STATES`, `reason` and `task` are parts."""
        parts = {name: value and storable(value) for name, value in (("reason", reason), ("task", task))}
        # Chosen first, so that no body is read only to be sorted and dropped.
        query = text(
            f"SELECT {SUMMARY} FROM dead_letters WHERE id = ANY(ARRAY("
            f" SELECT id FROM dead_letters WHERE {STATES[state]}"
            "  AND (CAST(:reason AS text) IS NULL OR position(lower(:reason) in lower(reason)) > 0)"
            "  AND (CAST(:task AS text) IS NULL OR position(lower(:task) in lower(task)) > 0)"
            "  ORDER BY at DESC LIMIT :limit)) ORDER BY at DESC"
        )
        with self.engine.connect() as connection:
            rows = connection.execute(query, {**parts, "limit": limit})
            return [_from_row(Summary, row) for row in rows]

    def get(self, letter_id: str) -> Letter | None:
        """Return one letter."""
        with self.engine.connect() as connection:
            return _get(connection, Letter, letter_id)

    def replay(self, app: Celery, runtime: Runtime, letter_id: str, *, anyway: bool = False) -> Letter:
        """Send a letter's message again, to the queue that it came from.

        Raises:
            NotReplayable: it was settled before, this release has no such task (unless `anyway`), or the
                broker has no such queue.
        """
        with self.engine.begin() as connection:
            letter = _lock_open(connection, Letter, letter_id)
            queue = letter.queue or runtime.project.commands_queue
            if not anyway and letter.task not in app.tasks:
                raise NotReplayable(
                    f"This release has no task {letter.task}; the message would come back as a dead letter"
                )
            # Marked first: a message that went out while the mark fails would be sent a second time.
            connection.execute(
                text("UPDATE dead_letters SET replayed_at = now() WHERE id = :id"), {"id": letter_id}
            )
            _publish(app, letter, queue)
        return letter

    def discard(self, letter_id: str, reason: str) -> Summary:
        """Discard a letter for good.

        Raises:
            NotReplayable: it was settled before.
        """
        with self.engine.begin() as connection:
            letter = _lock_open(connection, Summary, letter_id)
            query = text(
                "UPDATE dead_letters SET discarded_at = now(), discard_reason = :reason WHERE id = :id"
            )
            connection.execute(query, {"id": letter_id, "reason": storable(reason)})
        return letter


def _get(connection: Connection, kind: type[Kind], letter_id: str, lock: str = "") -> Kind | None:
    query = text(f"SELECT {COLUMNS[kind]} FROM dead_letters WHERE id = CAST(:id AS uuid) {lock}")
    row = connection.execute(query, {"id": letter_id}).one_or_none()
    return _from_row(kind, row) if row else None


def _lock_open(connection: Connection, kind: type[Kind], letter_id: str) -> Kind:
    letter = _get(connection, kind, letter_id, "FOR UPDATE")
    if letter is None:
        raise NotReplayable(f"There is no dead letter {letter_id}")
    if letter.state != "open":
        raise NotReplayable(f"Dead letter {letter_id} has already been {letter.state}")
    return letter


def _from_row(kind: type[Kind], row: Any) -> Kind:
    fields: dict[str, Any] = dict(row._mapping)
    bodies = {name: bytes(value) for name, value in fields.items() if isinstance(value, memoryview)}
    return kind(**{**fields, **bodies})


def _shown(body: bytes, *, is_all: bool = True) -> str:
    """Return a body, or its beginning, as text where it is text, else in base64."""
    try:
        return codecs.getincrementaldecoder("utf-8")().decode(body, final=is_all)
    except UnicodeDecodeError:
        return f"base64:{base64.b64encode(body).decode()}"


def _publish(app: Celery, letter: Letter, queue: str) -> None:
    properties = {name: letter.properties[name] for name in OWN_PROPERTIES if letter.properties.get(name)}
    content_type, content_encoding, body = _message(app, letter)
    with app.producer_or_acquire() as producer:
        try:
            producer.publish(
                body,
                exchange="",
                routing_key=queue,
                content_type=content_type,
                content_encoding=content_encoding,
                headers=letter.headers,
                mandatory=True,  # RabbitMQ would drop what is for a queue that is not there
                retry=True,
                retry_policy=app.conf.task_publish_retry_policy,
                **properties,
            )
        except producer.connection.channel_errors as error:
            raise NotReplayable(
                f"The broker did not take it for the queue {queue}: {describe(error)}"
            ) from None


def _message(app: Celery, letter: Letter) -> tuple[str, str, bytes | str]:
    """Return content type, encoding and body as they came; sign what a worker wrote, where we sign."""
    if letter.reason == PARKED:
        content_type, content_encoding, body = dumps(json.loads(letter.body), app.conf.task_serializer)
        return content_type, content_encoding, body
    return (
        letter.content_type or "application/octet-stream",
        letter.content_encoding or "binary",
        letter.body,
    )
