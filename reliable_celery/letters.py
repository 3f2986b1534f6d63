"""Turn kombu messages, readable or not, into dead letters."""

from __future__ import annotations

import math
from typing import Any

from reliable_celery.checks import MAX_DEPTH, MAX_NAME
from reliable_celery.dead_letters import DeadLetter
from reliable_celery.routing import queue_of
from reliable_celery.texts import storable

MAX_KEPT_BYTES = 16_777_216  # of the body; a database row holds less than a Redis item


def letter_of(message: Any, reason: str, error: str) -> DeadLetter:
    """Return the dead letter for a kombu message, readable or not."""
    fields, delivery = fields_of(message), message.delivery_info or {}
    body = message.body or b""
    body = body.encode("utf-8", "backslashreplace") if isinstance(body, str) else bytes(body)
    if len(body) > MAX_KEPT_BYTES:
        error = f"{error} (kept: {MAX_KEPT_BYTES} of {len(body)} bytes)"
    return DeadLetter(
        reason=reason,
        error=error,
        body=body[:MAX_KEPT_BYTES],
        task=short_text(fields.get("task")),
        task_id=short_text(fields.get("id")),
        queue=short_text(queue_of(delivery)),
        content_type=short_text(message.content_type),
        content_encoding=short_text(message.content_encoding),
        headers=_plain(message.headers) if isinstance(message.headers, dict) else {},
        properties=_plain(message.properties) if isinstance(message.properties, dict) else {},
    )


def fields_of(message: Any) -> dict[str, Any]:
    """Return the fields that name the task, in either protocol; empty when the message is unreadable."""
    if not isinstance(message.headers, dict):
        return {}
    if "task" in message.headers or message.errors:
        return message.headers
    try:
        payload = message.payload
    except Exception:  # noqa: BLE001  unreadable messages are expected here
        return message.headers
    return message.headers | payload if isinstance(payload, dict) else message.headers


def short_text(value: Any) -> str | None:
    """Return `value` as a short text, None for None."""
    return None if value is None else storable(value if isinstance(value, str) else repr(value))[:MAX_NAME]


def _plain(value: Any, room: int = MAX_DEPTH) -> Any:
    """Return `value` as JSON that any store accepts."""
    if value is None or isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if isinstance(value, str):
        return storable(value)
    if room and isinstance(value, dict):
        return {storable(str(key)): _plain(item, room - 1) for key, item in value.items()}
    if room and isinstance(value, list | tuple):
        return [_plain(item, room - 1) for item in value]
    return storable(repr(value) if room else "… nested too deep")
