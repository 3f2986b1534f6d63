"""Every Celery setting, with its reason: first those common to all projects, then those that depend on one.

Addresses and secrets come from the project's settings, and so only from the environment.
"""

from __future__ import annotations

from typing import Any

from messaging.brokers import tls, topology
from messaging.project import Project
from reliable_celery import results

# Records messages that no task can run; Celery's own consumer drops them or dies.
worker_consumer = "messaging.worker.consumer:Consumer"
# Stops under load without the half minute that Celery's own pool may wait. Choose other pools with --pool.
worker_pool = "reliable_celery.pools.prefork:TaskPool"

# JSON only: nothing from a sender is ever loaded as code.
accept_content = ["json"]
task_serializer = "json"
result_serializer = "json"
result_accept_content = ["json"]

# Messages are acknowledged after their work, and redelivered if the worker dies before that.
task_acks_late = True
task_reject_on_worker_lost = True
# An error is an answer too: the sender has it, so the message is acknowledged. A time-out is no answer: the
# work may be committed, so the message is redelivered to find out.
task_acks_on_failure = True
task_acks_on_timeout = False
# Children are not restarted regularly, but a leak in a handler must not grow for ever.
worker_max_memory_per_child = 400_000  # KiB

# Workers wait for an unavailable broker without limit, at start and later.
broker_connection_retry_on_startup = True
broker_connection_max_retries = None
# On RabbitMQ a node that sends nothing is left after two of these (seconds), and it leaves a silent worker as
# soon; Celery's own is two minutes. So a pause of 6 s on either side costs a new connection, and the running
# tasks begin again.
broker_heartbeat = 3
# Looks so often within the time of one heartbeat: once a second.
broker_heartbeat_checkrate = 3
# The first copy stops when its message is requeued, so that two do not run at once.
worker_cancel_long_running_tasks_on_connection_loss = True
# Publishing gives up within seconds: the relay sends the rest.
task_publish_retry_policy = {"max_retries": 2, "interval_start": 0, "interval_step": 0.2, "interval_max": 0.4}

# An unavailable result backend blocks nobody for long.
result_backend_transport_options = {"retry_policy": {"timeout": 5.0}}
redis_socket_timeout = 10
redis_socket_connect_timeout = 5

# Flower needs events.
worker_send_task_events = True
task_send_sent_event = False  # senders are other apps

# An undeclared queue is a typing error, not a new queue.
task_create_missing_queues = False
task_default_exchange = ""

# Beat notices a changed schedule within seconds.
beat_max_loop_interval = 5
# A clock that is set back does not stop it.
beat_scheduler = "reliable_celery.beat:Scheduler"

# On SIGTERM a worker finishes its running tasks, which take milliseconds and at most the time limit, and
# returns its waiting messages. A soft shutdown would always sleep for its whole time-out.
worker_soft_shutdown_timeout = 0

# One time zone for all machines, and log lines that name their task.
timezone = "UTC"
enable_utc = True
worker_hijack_root_logger = True
worker_log_format = "%(asctime)s %(levelname)s %(processName)s %(message)s"
worker_task_log_format = "%(asctime)s %(levelname)s %(processName)s %(task_name)s[%(task_id)s] %(message)s"


def of_project(project: Project) -> dict[str, Any]:
    """Return the settings that depend on a project's name and its own settings."""
    settings = project.settings()

    def sentinel(url: str) -> dict[str, Any]:
        return settings.sentinel.options(url, tls.redis(settings.tls_ca_file))

    return {
        # Addresses of messages and results.
        "broker_url": topology.address(settings.broker_url),
        # Writes a success without first reading the stored result: one round trip instead of two.
        "result_backend": results.address(settings.result_backend_url),
        # Detects half-open connections, which a Unix socket cannot have.
        "redis_socket_keepalive": not topology.is_redis_socket(settings.result_backend_url),
        # Pops and registers messages in one step, so that a killed worker loses none.
        "broker_transport": topology.transport(settings.broker_url),
        # TLS if an address asks for it, with the server's certificate verified.
        **tls.settings(settings.broker_url, settings.result_backend_url, settings.tls_ca_file),
        # Limited waits; on Redis quick redelivery after a worker's death, and keys apart from those of other
        # Celery apps; on RabbitMQ confirmed publishing.
        "broker_transport_options": topology.transport_options(
            settings.broker_url,
            settings.visibility_timeout_s,
            settings.worker_lease_s,
            project.name,
            sentinel(settings.broker_url),
        ),
        # The same patience as above, and how Sentinel is asked.
        "result_backend_transport_options": {
            **result_backend_transport_options,
            **sentinel(settings.result_backend_url),
        },
        # Processes per worker; `--concurrency` on the command line overrides it.
        "worker_concurrency": settings.worker_concurrency,
        # For a probe; the event loop touches it.
        "worker_alive_file": str(settings.worker_alive_file or ""),
        # A hung handler is killed; the inbox and the delivery row make its second run harmless.
        "task_time_limit": settings.task_time_limit_s,
        # A larger message becomes a dead letter; of one over 16 MiB only the beginning is read from Redis.
        "message_max_bytes": settings.message_max_bytes,
        # So does one with a later ETA.
        "message_max_eta_s": settings.message_max_eta_s,
        # Commands that have arrived may share a transaction.
        "message_group_max": settings.group_max,
        # A worker holds few messages that another could run, but enough for a group.
        "worker_prefetch_multiplier": max(4, settings.group_max),
        # How long senders can read their results.
        "result_expires": settings.result_expires_s,
        # Commands, deliveries, and housekeeping in its own queue, so that a backlog cannot starve it.
        "task_queues": [
            topology.task_queue(project.name, name, settings.broker_url) for name in project.queues
        ],
        "task_default_queue": project.commands_queue,
        "task_default_routing_key": project.commands_queue,
        # Runs of housekeeping that have not started when the next one is due are dropped.
        "beat_schedule": {
            job: {
                "task": f"{project.name}.{job}",
                "schedule": interval_s,
                "options": {"queue": project.housekeeping_queue, "expires": max(interval_s, 10)},
            }
            for job, interval_s in settings.housekeeping.items()
        },
    }
