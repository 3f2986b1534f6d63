"""Find a message's queue; delayed delivery on RabbitMQ puts the delay into the routing key."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

#: The start of the routing key that Celery gives to a delayed message on RabbitMQ.
DELAYED = re.compile(r"(?:[01]\.){28}")


def queue_of(delivery_info: Mapping[str, Any]) -> str | None:
    """Return the queue: from our Redis transport, else from the routing key."""
    name = delivery_info.get("queue") or delivery_info.get("routing_key")
    return None if name is None else DELAYED.sub("", str(name), count=1)


def was_delayed_by_broker(delivery_info: Mapping[str, Any]) -> bool:
    """Whether a message went through Celery's delayed delivery on RabbitMQ."""
    return bool(DELAYED.match(str(delivery_info.get("routing_key"))))
