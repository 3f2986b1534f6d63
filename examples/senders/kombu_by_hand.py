"""A message of Celery's protocol 2 built by hand, for languages without a good Celery client.

Install: pip install "celery[redis]"
Source: https://docs.celeryq.dev/en/stable/internals/protocol.html#version-2
"""

import json
import os
import time
from typing import Any
from uuid import uuid4

from kombu import Connection
from redis import Redis

BROKER_URL = os.environ.get("BROKER_URL", "redis://127.0.0.1:6390/0")
RESULTS_URL = os.environ.get("RESULTS_URL", "redis://127.0.0.1:6390/1")


def send(task: str, fields: dict[str, Any], key: str | None = None) -> str:
    """Put a command on the queue and return its id.

    `key` is the idempotency key: the command takes effect once per key.
    """
    task_id = str(uuid4())
    body: tuple[Any, ...] = ([], fields, {})  # positional arguments, fields, nothing embedded
    with Connection(BROKER_URL) as connection:
        connection.Producer().publish(
            body,
            exchange="",
            routing_key="allocation.commands",
            serializer="json",
            headers={"task": task, "id": task_id, "idempotency_key": key or task_id},
            retry=True,
            delivery_mode="persistent",
        )
    return task_id


def answer(task_id: str, timeout_s: float = 10) -> Any:
    """Wait for the result of a command; a refusal is raised as its class and text."""
    until = time.monotonic() + timeout_s
    with Redis.from_url(RESULTS_URL) as results:
        while time.monotonic() < until:
            stored = results.get(f"celery-task-meta-{task_id}")
            if stored is not None:
                meta = json.loads(stored)
                if meta["status"] == "SUCCESS":
                    return meta["result"]
                raise RuntimeError(f"{meta['result']['exc_type']}: {meta['result']['exc_message']}")
            time.sleep(0.02)
    raise TimeoutError(f"No answer to {task_id} after {timeout_s} s")


if __name__ == "__main__":
    # Several workers take commands at the same time: wait for the stock before it is allocated.
    answer(send("allocation.create_batch", {"ref": "hand-batch", "sku": "HAND-LAMP", "qty": 100}))
    print(answer(send("allocation.allocate", {"orderid": "hand-order", "sku": "HAND-LAMP", "qty": 3})))
