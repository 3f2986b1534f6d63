"""Every Celery setting, each with its reason: first the same for every project, then what follows from one.

Addresses and secrets come from the project's settings, hence from the environment alone.
"""

from __future__ import annotations

from typing import Any

from messaging import brokers, tls
from messaging.project import Project
from reliable_celery import results

# Records messages that no task can read, where Celery's own consumer drops them or dies.
worker_consumer = "messaging.worker.consumer:Consumer"
# Ends under load without the half minute that Celery's own pool may wait. Other pools are chosen with --pool.
worker_pool = "reliable_celery.pools.prefork:TaskPool"

# JSON only: nothing that a sender writes is ever loaded as code.
accept_content = ["json"]
task_serializer = "json"
result_serializer = "json"
result_accept_content = ["json"]

# A message is acknowledged when its work is done, and comes back when the worker dies before that.
task_acks_late = True
task_reject_on_worker_lost = True
# An answer with an error is an answer: the sender has it, so the message is done. The time limit is none:
# the work may be committed, so the message comes back and finds out.
task_acks_on_failure = True
task_acks_on_timeout = False
# Few messages wait in a worker that another could run.
worker_prefetch_multiplier = 4
# The pool is not restarted for its own sake, but a leak in a handler must not grow for ever.
worker_max_memory_per_child = 400_000  # KiB

# Workers wait for a broker that is away, at start and later, for as long as it takes.
broker_connection_retry_on_startup = True
broker_connection_max_retries = None
# The first copy stops when its message is given back, so that two do not run at once.
worker_cancel_long_running_tasks_on_connection_loss = True
# Publishing gives up in seconds: the relay sends what did not go out.
task_publish_retry_policy = {"max_retries": 2, "interval_start": 0, "interval_step": 0.2, "interval_max": 0.4}

# A result backend that is away holds nobody up for long.
result_backend_transport_options = {"retry_policy": {"timeout": 5.0}}
redis_socket_timeout = 10
redis_socket_connect_timeout = 5

# Flower lives on events.
worker_send_task_events = True
task_send_sent_event = False  # senders are other apps

# A queue that nobody declared is a typing error, not a new queue.
task_create_missing_queues = False
task_default_exchange = ""

# The clock notices a changed schedule in seconds.
beat_max_loop_interval = 5

# A deploy: SIGTERM ends a worker when the tasks that run are done, which take milliseconds and at most the
# time limit, and gives back what waits in it. A soft shutdown would sleep through its whole time-out.
worker_soft_shutdown_timeout = 0

# One clock for every machine, and log lines that say which task they belong to.
timezone = "UTC"
enable_utc = True
worker_hijack_root_logger = True
worker_log_format = "%(asctime)s %(levelname)s %(processName)s %(message)s"
worker_task_log_format = "%(asctime)s %(levelname)s %(processName)s %(task_name)s[%(task_id)s] %(message)s"


def of_project(project: Project) -> dict[str, Any]:
    """Return the settings that follow from a project's name and its own settings."""
    settings = project.settings()
    return {
        # Where messages and results are.
        "broker_url": brokers.address(settings.broker_url),
        # A success is written without reading first what was there: one round trip instead of two.
        "result_backend": results.address(settings.result_backend_url),
        # A half-open connection is noticed; a Unix socket has none.
        "redis_socket_keepalive": not brokers.is_redis_socket(settings.result_backend_url),
        # Pops and registers a message in one step, so that a killed worker loses none.
        "broker_transport": brokers.transport(settings.broker_url),
        # TLS where an address asks for it, with the server's certificate checked.
        **tls.settings(settings.broker_url, settings.result_backend_url, settings.tls_ca_file),
        # Bounded waits, messages of dead workers back in time, and apart from those of other Celery apps on
        # this Redis; confirmed publishing on RabbitMQ.
        "broker_transport_options": brokers.transport_options(
            settings.broker_url, settings.visibility_timeout_s, settings.worker_lease_s, project.name
        ),
        # Processes of a worker; `--concurrency` on its command line wins.
        "worker_concurrency": settings.worker_concurrency,
        # A hung handler is ended; the inbox and the delivery row make its second run harmless.
        "task_time_limit": settings.task_time_limit_s,
        # A larger message is a dead letter before anybody reads it.
        "message_max_bytes": settings.message_max_bytes,
        # One that is to wait longer as well.
        "message_max_eta_s": settings.message_max_eta_s,
        # A sender may ask for its result for so long.
        "result_expires": settings.result_expires_s,
        # Commands, deliveries, and housekeeping apart so that a backlog cannot starve it.
        "task_queues": [
            brokers.task_queue(project.name, name, settings.broker_url) for name in project.queues
        ],
        "task_default_queue": project.commands_queue,
        "task_default_routing_key": project.commands_queue,
        # Runs of housekeeping that were not begun before the next one is due are dropped.
        "beat_schedule": {
            job: {
                "task": f"{project.name}.{job}",
                "schedule": interval_s,
                "options": {"queue": project.housekeeping_queue, "expires": max(interval_s, 10)},
            }
            for job, interval_s in settings.housekeeping.items()
        },
    }
