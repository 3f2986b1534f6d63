"""A listener on Redis with rights to its own queue alone: `python examples/listener/listen_on_redis.py`.

Install: pip install redis

An operator has bound the queue (`listen.py --bind`). One process reads it. An event may arrive twice with the
same `id`.
"""

import base64
import json
import os
from collections.abc import Iterator
from typing import Any

import redis

BROKER_URL = os.environ.get("BROKER_URL", "redis://127.0.0.1:6390/0")
QUEUE = os.environ.get("QUEUE", "warehouse.stock-news")
TAKEN = f"{QUEUE}.taken"
WAIT_S = 5


def messages(server: redis.Redis) -> Iterator[bytes]:
    """Yield each message, kept under TAKEN until the next one is requested: a killed listener loses none."""
    while True:
        message = server.lindex(TAKEN, -1) or server.blmove(QUEUE, TAKEN, WAIT_S, "RIGHT", "LEFT")
        if message:
            yield message  # type: ignore[misc]  # redis-py types its asynchronous client too
            server.rpop(TAKEN)


def event_of(message: bytes) -> Any:
    """Return the event inside kombu's envelope."""
    envelope = json.loads(message)
    body = envelope["body"]
    if envelope["properties"].get("body_encoding") == "base64":
        body = base64.b64decode(body)
    return json.loads(body)


def main() -> None:
    """Print each event as a line of JSON until Ctrl-C."""
    with redis.Redis.from_url(BROKER_URL, socket_timeout=2 * WAIT_S) as server:
        for message in messages(server):
            print(json.dumps(event_of(message)), flush=True)


if __name__ == "__main__":
    main()
