"""Another team's app on the same Redis database: stock Celery with its own queue and tasks.

`celery -A tests.e2e.neighbour worker`, with the broker in NEIGHBOUR_BROKER, its options in NEIGHBOUR_OPTIONS.
"""

import json
import os

from celery import Celery

app = Celery("neighbour", set_as_current=False)
app.conf.update(
    broker_url=os.environ["NEIGHBOUR_BROKER"],
    broker_transport_options=json.loads(os.environ["NEIGHBOUR_OPTIONS"]),
    broker_connection_retry_on_startup=True,
    worker_cancel_long_running_tasks_on_connection_loss=True,
    task_default_queue="neighbour",
    task_acks_late=True,
    task_ignore_result=True,
)


@app.task(name="neighbour.run")
def run(number: int) -> int:
    """Write a line to the log."""
    return number
