"""Every Celery setting, each with its reason. Addresses and secrets come from the environment alone."""

from __future__ import annotations

from kombu import Exchange, Queue

from allocation.config import settings

_settings = settings()

# Where messages and results are.
broker_url = _settings.broker_url
result_backend = _settings.result_backend_url

# Pops and registers a message in one step, so that a killed worker loses none.
broker_transport = "messaging.worker.redis_transport:Transport" if broker_url.startswith("redis") else None
# Records messages that no task can read, where Celery's own consumer drops them or dies.
worker_consumer = "messaging.worker.consumer:Consumer"

# JSON only: nothing that a sender writes is ever loaded as code.
accept_content = ["json"]
task_serializer = "json"
result_serializer = "json"
result_accept_content = ["json"]

# A message is acknowledged when its work is done, and comes back when the worker dies before that.
task_acks_late = True
task_reject_on_worker_lost = True
# An answer with an error is an answer: the sender has it, so the message is done.
task_acks_on_failure_or_timeout = True
# A hung handler is ended; the inbox and the delivery row make its second run harmless.
task_time_limit = _settings.task_time_limit_s
# Few messages wait in a worker that another could run.
worker_prefetch_multiplier = 4
# The pool is not restarted for its own sake, but a leak in a handler must not grow for ever.
worker_max_memory_per_child = 400_000  # KiB

# Redis gives messages of a dead worker back after this; longer than the longest back-off and run.
broker_transport_options = {
    "visibility_timeout": _settings.visibility_timeout_s,
    # Look for such messages every second or so, not every 100 seconds.
    "unacked_restore_interval": 1,
    "unacked_restore_throttle": 1,
    # A half-open connection is noticed.
    "socket_timeout": 10,
    "socket_connect_timeout": 5,
    "socket_keepalive": True,
    "health_check_interval": 10,
}
# Workers wait for a broker that is away, at start and later, for as long as it takes.
broker_connection_retry_on_startup = True
broker_connection_max_retries = None
# The first copy stops when its message is given back, so that two do not run at once.
worker_cancel_long_running_tasks_on_connection_loss = True
# Publishing gives up in seconds: the relay sends what did not go out.
task_publish_retry_policy = {"max_retries": 2, "interval_start": 0, "interval_step": 0.2, "interval_max": 0.4}

# A result is kept for a day; a backend that is away holds nobody up for long.
result_expires = _settings.result_expires_s
result_backend_transport_options = {"retry_policy": {"timeout": 5.0}}
redis_socket_timeout = 10
redis_socket_connect_timeout = 5
redis_socket_keepalive = True

# Flower lives on events.
worker_send_task_events = True
task_send_sent_event = False  # senders are other apps

# Queues: commands, deliveries, and housekeeping apart so that a backlog cannot starve it.
task_queues = [
    Queue(name, Exchange("", type="direct"), routing_key=name)
    for name in ("allocation.commands", "allocation.events", "allocation.housekeeping")
]
task_default_queue = "allocation.commands"
task_default_exchange = ""
task_default_routing_key = "allocation.commands"
task_create_missing_queues = False

# Runs of housekeeping that were not begun before the next one is due are dropped.
beat_schedule = {
    name: {
        "task": f"allocation.{name}",
        "schedule": interval_s,
        "options": {"queue": "allocation.housekeeping", "expires": max(interval_s, 10)},
    }
    for name, interval_s in (
        ("relay", _settings.relay_interval_s),
        ("rerun", _settings.rerun_interval_s),
        ("prune", _settings.prune_interval_s),
    )
}
beat_max_loop_interval = 5

# A deploy: finish what runs for this long, then give the rest back.
worker_soft_shutdown_timeout = 10
worker_enable_soft_shutdown_on_idle = True

timezone = "UTC"
enable_utc = True
worker_hijack_root_logger = True
worker_log_format = "%(asctime)s %(levelname)s %(processName)s %(message)s"
worker_task_log_format = "%(asctime)s %(levelname)s %(processName)s %(task_name)s[%(task_id)s] %(message)s"
