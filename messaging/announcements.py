"""Events as other apps hear them: CloudEvents 1.0 in JSON.

Source: https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/spec.md
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

CONTENT_TYPE = "application/cloudevents+json"


@dataclass(frozen=True)
class Announcement:
    """An event to publish; `event_id` stays the same when it is published again."""

    event_id: str
    event_type: str
    payload: Mapping[str, Any]  # the event's fields as JSON values
    correlation_id: str  # the command that began it all
    causation_id: str  # the command or delivery that raised the event
    at: datetime


def cloud_event(project: str, announcement: Announcement) -> dict[str, Any]:
    """Return the envelope around an event: who tells, what kind, when, and the event's fields as `data`."""
    return {
        "specversion": "1.0",
        "id": announcement.event_id,
        "source": f"/{project}",
        "type": f"{project}.{announcement.event_type}",
        "time": announcement.at.isoformat(),
        "datacontenttype": "application/json",
        "correlationid": announcement.correlation_id,
        "causationid": announcement.causation_id,
        "data": dict(announcement.payload),
    }
