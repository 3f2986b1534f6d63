"""The Celery app of a sender."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from celery import Celery
from celery.backends.redis import RedisBackend

from messaging.brokers import tls, topology
from reliable_celery.sentinel import Sentinel, is_sentinel

#: Publishing gives up after some seconds: a clear error is better than a hang.
PUBLISH_RETRY = {"max_retries": 3, "interval_start": 0.1, "interval_step": 0.4, "interval_max": 1.0}
#: Time limits on a connection's waits; Celery itself would wait for longer.
CONNECT_TIMEOUT_S = 4


class _App(Celery):  # type: ignore[misc]  # Celery is untyped
    def _get_backend(self) -> Any:
        """Return the result backend; on Redis one that listens for an answer only when it is asked for.

        Celery's listens for the answer to whatever is sent. If nobody asks for one, nobody reads what Redis
        says to that either, and after some 300,000 commands the connection is full: sending hangs for ever.
        """
        backend = super()._get_backend()
        if isinstance(backend, RedisBackend):
            backend.on_task_call = lambda _producer, _task_id: None
        return backend


def make_app(
    project: str, broker_url: str, backend_url: str, sentinel: Sentinel, ca_file: Path | None
) -> Celery:
    """Return an app that sends a project's commands; it connects on first use."""
    app = _App(
        f"{project}.client",
        broker=topology.address(broker_url),
        backend=_backend(backend_url),
        set_as_current=False,
    )
    app.conf.update(
        _settings(broker_url, backend_url, sentinel, ca_file) | tls.settings(broker_url, backend_url, ca_file)
    )
    return app


def close_app(app: Celery) -> None:
    """Close a sender's app with its connections to the results, which Celery itself never closes."""
    if isinstance(app.backend, RedisBackend):
        consumer = app.backend.result_consumer
        consumer.stop()
        # A result that is discarded later would open a connection to end its subscription.
        consumer.subscribed_to.clear()
        app.backend.client.connection_pool.disconnect()
    app.close()


def _backend(url: str) -> str:
    """Return Celery's `result_backend`; by Sentinel that of workers, which notices a failover."""
    if not is_sentinel(url):
        return url
    # Imported here for senders that use no Redis and need not install it.
    from reliable_celery import results

    return results.address(url)


def _settings(broker_url: str, backend_url: str, sentinel: Sentinel, ca_file: Path | None) -> dict[str, Any]:
    secure = tls.redis(ca_file)
    return {
        # By Sentinel, the workers' transport: it leaves a primary that is not the primary any more.
        "broker_transport": topology.transport(broker_url) if is_sentinel(broker_url) else None,
        # JSON only: no result is ever loaded as code.
        "task_serializer": "json",
        "accept_content": ["json"],
        "result_accept_content": ["json"],
        "broker_transport_options": topology.transport_options(
            broker_url, sentinel=sentinel.options(broker_url, secure)
        ),
        # A clear error after some seconds is better than a hang.
        "broker_connection_timeout": CONNECT_TIMEOUT_S,
        "task_publish_retry_policy": PUBLISH_RETRY,
        "redis_socket_connect_timeout": CONNECT_TIMEOUT_S,
        "redis_socket_timeout": 10,
        "redis_socket_keepalive": not topology.is_redis_socket(backend_url),
        "result_backend_transport_options": {
            "retry_policy": {"timeout": 3.0},
            **sentinel.options(backend_url, secure),
        },
    }
