"""Plain Celery, no code of this project: `python examples/senders/plain.py`."""

import os

from celery import Celery

app = Celery(
    broker=os.environ.get("BROKER_URL", "redis://127.0.0.1:6390/0"),
    backend=os.environ.get("RESULTS_URL", "redis://127.0.0.1:6390/1"),
)


def ask(task: str, **fields: object) -> object:
    """Send a command and wait for its answer; a refusal is raised by its class name."""
    # declare=(): the backend owns the queue; on RabbitMQ a second declaration would have to match it.
    return app.send_task(task, kwargs=fields, queue="allocation.commands", declare=()).get(timeout=10)


if __name__ == "__main__":
    ask("allocation.create_batch", ref="plain-batch", sku="PLAIN-LAMP", qty=100)
    print(ask("allocation.allocate", orderid="plain-order", sku="PLAIN-LAMP", qty=3))  # plain-batch
