"""Settings that make stock Celery as safe as it can be on Redis: late acknowledgement, quick redelivery."""

task_default_queue = "plain-celery-stock"
task_acks_late = True
task_reject_on_worker_lost = True
worker_pool = "threads"
worker_concurrency = 2
worker_prefetch_multiplier = 4
broker_connection_retry_on_startup = True
broker_transport_options = {
    "visibility_timeout": 4,
    # Look every second for messages of dead workers; by default every 100 seconds.
    "unacked_restore_interval": 1,
    "unacked_restore_throttle": 1,
    # By kombu's own names all apps on one database give back each other's messages.
    "unacked_key": "plain-celery-stock.unacked",
    "unacked_index_key": "plain-celery-stock.unacked_index",
    "unacked_mutex_key": "plain-celery-stock.unacked_mutex",
}
