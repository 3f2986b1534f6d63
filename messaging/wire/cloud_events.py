"""Events as published to other apps: CloudEvents 1.0 in JSON, with two extensions.

Sources: https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/spec.md
https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/extensions/sequence.md
https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/extensions/distributed-tracing.md
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

CONTENT_TYPE = "application/cloudevents+json"

#: Digits of a `sequence`: with leading zeros, 64-bit numbers sort the same as text and as numbers.
#: `sequencetype` is left out: its one defined value, Integer, means 32 bits without gaps.
SEQUENCE_DIGITS = 19


@dataclass(frozen=True)
class Announcement:
    """An event to publish; publishing it again does not change any field."""

    event_id: str
    event_type: str
    payload: Mapping[str, Any]  # the event's fields as JSON values
    correlation_id: str  # the original command
    causation_id: str  # the command or delivery that raised the event
    at: datetime
    position: int = 0  # rises in commit order within one aggregate
    subject: str | None = None  # the key of the aggregate that raised it, if it has one
    traceparent: str | None = None  # the trace that it was raised in, if there is one


def cloud_event(project: str, announcement: Announcement) -> dict[str, Any]:
    """Return the envelope of an event; its `data` are the event's fields."""
    optional = {"subject": announcement.subject, "traceparent": announcement.traceparent}
    return {
        "specversion": "1.0",
        "id": announcement.event_id,
        "source": f"/{project}",
        "type": f"{project}.{announcement.event_type}",
        **{name: value for name, value in optional.items() if value is not None},
        "sequence": f"{announcement.position:0{SEQUENCE_DIGITS}}",
        "time": announcement.at.isoformat(),
        "datacontenttype": "application/json",
        "correlationid": announcement.correlation_id,
        "causationid": announcement.causation_id,
        "data": dict(announcement.payload),
    }
