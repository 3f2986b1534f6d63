"""Plain Celery, no code of this project: `python examples/senders/plain.py`.

Install: pip install "celery[redis]"
"""

import os
import sys

from celery import Celery
from kombu.exceptions import OperationalError

app = Celery(
    broker=os.environ.get("BROKER_URL", "redis://127.0.0.1:6390/0"),
    backend=os.environ.get("RESULTS_URL", "redis://127.0.0.1:6390/1"),
)
# By default Celery waits 19 s for a result backend that does not answer.
app.conf.result_backend_transport_options = {"retry_policy": {"timeout": 3}}


def ask(task: str, **fields: object) -> object:
    """Send a command and wait for its answer; a refusal is raised by its class name."""
    # declare=(): the backend owns the queue; on RabbitMQ a second declaration would have to match it.
    return app.send_task(task, kwargs=fields, queue="allocation.commands", declare=()).get(timeout=10)


def main() -> None:
    """Buy a lamp and allocate it."""
    ask("allocation.create_batch", ref="plain-batch", sku="PLAIN-LAMP", qty=100)
    print(ask("allocation.allocate", orderid="plain-order", sku="PLAIN-LAMP", qty=3))  # plain-batch


if __name__ == "__main__":
    try:
        main()
    except (OperationalError, RuntimeError) as error:
        # Celery raises a RuntimeError when the result backend stays away.
        sys.exit(f"The broker or the result backend does not answer: {error.__cause__ or error}")
