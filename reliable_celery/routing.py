"""Which queue a message came by; delayed delivery on RabbitMQ puts the delay into the routing key."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

#: How Celery begins the routing key of a message that is to wait on RabbitMQ.
DELAYED = re.compile(r"(?:[01]\.){28}")


def queue_of(delivery_info: Mapping[str, Any]) -> str | None:
    """Return the queue: as our Redis transport says, else by the routing key."""
    name = delivery_info.get("queue") or delivery_info.get("routing_key")
    return None if name is None else DELAYED.sub("", str(name), count=1)


def was_delayed_by_broker(delivery_info: Mapping[str, Any]) -> bool:
    """Tell whether a message went through Celery's delayed delivery on RabbitMQ."""
    return bool(DELAYED.match(str(delivery_info.get("routing_key"))))
