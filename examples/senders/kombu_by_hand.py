"""A message of Celery's protocol 2 built by hand, for languages without a good Celery client.

Install: pip install "celery[redis]"
Source: https://docs.celeryq.dev/en/stable/internals/protocol.html#version-2
"""

import os
from typing import Any
from uuid import uuid4

from kombu import Connection

BROKER_URL = os.environ.get("BROKER_URL", "redis://127.0.0.1:6390/0")


def send(task: str, fields: dict[str, Any], key: str | None = None) -> str:
    """Put a command on the queue and return its id; the answer is `celery-task-meta-<id>` in the results.

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


if __name__ == "__main__":
    send("allocation.create_batch", {"ref": "hand-batch", "sku": "HAND-LAMP", "qty": 100})
    print(send("allocation.allocate", {"orderid": "hand-order", "sku": "HAND-LAMP", "qty": 3}))
