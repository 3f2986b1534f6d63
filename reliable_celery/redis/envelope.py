"""The JSON that kombu puts on a Redis list for each message, and how to handle anything else."""

# mypy: disable-error-code="no-untyped-call"
# kombu is untyped in parts, although it says otherwise.

from __future__ import annotations

import sys
from typing import Any
from uuid import uuid4

from kombu.transport import virtual
from kombu.utils.json import loads

from reliable_celery.compression import payload_of, refuse_compression

UNREADABLE = "application/x-unreadable"  # content type of an envelope made around other bytes


def read_envelope(item: bytes) -> dict[str, Any] | None:
    """Return the kombu message in `item` (its bytes on the list), None when it is something else."""
    try:
        payload = loads(item.decode(errors="replace"))
    except Exception:  # noqa: BLE001  kombu's JSON hooks may raise anything
        return None
    return payload if is_envelope(payload) else None


def is_envelope(payload: Any) -> bool:
    """Whether `payload` has the shape that kombu relies on without checking it."""
    properties = payload.get("properties") if isinstance(payload, dict) else None
    if not isinstance(properties, dict):
        return False
    texts = [payload.get(name) for name in ("body", "content-type", "content-encoding")]
    texts.append(properties.get("body_encoding"))
    tables = (payload.get("headers"), properties.get("delivery_info"))
    return all(text is None or isinstance(text, str) for text in texts) and all(
        table is None or isinstance(table, dict) for table in tables
    )


def hide(item: bytes, queue: str) -> dict[str, Any]:
    """Return a kombu envelope that carries `item`, so that kombu's sweeps can move it like any message."""
    return {
        "body": item.hex(),
        "content-type": UNREADABLE,
        "content-encoding": "hex",
        "headers": {},
        "properties": {"delivery_tag": uuid4().hex, "delivery_info": {"exchange": "", "routing_key": queue}},
    }


class Message(virtual.Message):
    """A message that records decoding errors in `errors`, where consumers look; kombu's raises them."""

    def __init__(self, payload: dict[str, Any], channel: Any = None, **kwargs: Any) -> None:
        try:
            refuse_compression(payload.get("headers"))
            super().__init__(payload, channel=channel, **kwargs)
        except Exception:  # noqa: BLE001  each codec raises its own errors
            self.errors = [sys.exc_info()]
            plain = {name: value for name, value in payload["properties"].items() if name != "body_encoding"}
            super().__init__({**payload, "properties": plain}, channel=channel, **kwargs)
            self.properties = payload["properties"]  # still names the body's encoding

    def _decode(self) -> Any:
        return payload_of(self)
