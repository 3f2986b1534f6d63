"""The same settings as in stock.py, and a line for each part of `reliable_celery`."""

import os

from examples.plain_celery.stock import *  # noqa: F403  Celery's settings are names of a module
from examples.plain_celery.stock import broker_transport_options

# Messages are popped and registered in one step; a dead worker's are redelivered when its lease runs out.
broker_transport = "reliable_celery.redis.transport:Transport"
broker_transport_options = broker_transport_options | {
    "lease_s": 2,
    "unacked_key": "plain-celery-reliable.unacked",
    "unacked_index_key": "plain-celery-reliable.unacked_index",
    "unacked_mutex_key": "plain-celery-reliable.unacked_mutex",
}
# What no task can run becomes a dead letter, in a list on the broker's Redis, and an error for its sender.
worker_consumer = "reliable_celery.consumer:Consumer"
dead_letter_key = "plain-celery-reliable.dead_letters"
# So does a message whose workers died more often than this.
message_max_crashes = 2
# A result is written in one round trip.
result_backend = "reliable_celery.results:ResultBackend+" + os.environ.get(
    "BROKER", "redis://127.0.0.1:6379/0"
)

task_default_queue = "plain-celery-reliable"
