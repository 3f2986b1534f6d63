"""The Celery app of a sender."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from celery import Celery
from celery.backends.redis import RedisBackend
from celery.result import AsyncResult

from messaging.brokers import tls, topology
from reliable_celery.sentinel import Sentinel, is_sentinel

#: Publishing gives up after some seconds: a clear error is better than a hang.
PUBLISH_RETRY = {"max_retries": 3, "interval_start": 0.1, "interval_step": 0.4, "interval_max": 1.0}
#: Time limits on a connection's waits; Celery itself would wait for longer.
CONNECT_TIMEOUT_S = 4
#: What Redis says to a wait: that it listens, the answer, and that it listens no more.
REPLIES_TO_A_WAIT = 3


class _App(Celery):  # type: ignore[misc]  # Celery is untyped
    def _get_backend(self) -> Any:
        """Return the result backend; on Redis one that leaves nothing unread."""
        backend = super()._get_backend()
        if isinstance(backend, RedisBackend):
            _leave_nothing_unread(backend)
        return backend


def _leave_nothing_unread(backend: RedisBackend) -> None:
    """Listen for an answer only while it is waited for, and read all that Redis says to that.

    Celery listens for the answer to whatever is sent, stops listening when the result is discarded (before
    5.7 also where it never began), and reads Redis' replies only as long as an answer is missing. What is not
    read fills the connection, then Redis: a process that never asked hung after some 300,000 commands.
    """
    listener, wait = backend.result_consumer, backend.wait_for_pending

    def stop_listening(result: AsyncResult) -> None:
        if backend.get_key_for_task(result.id) in listener.subscribed_to:
            listener.cancel_for(result.id)

    def wait_and_read(result: AsyncResult, **options: Any) -> Any:
        try:
            return wait(result, **options)
        finally:
            with suppress(Exception):  # the next wait connects again
                for _ in range(REPLIES_TO_A_WAIT):
                    listener.drain_events(timeout=0)

    backend.on_task_call = lambda _producer, _task_id: None
    backend.on_result_fulfilled = stop_listening
    backend.wait_for_pending = wait_and_read


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
