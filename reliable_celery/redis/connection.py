"""A channel's connection to Redis: one client, and errors that Celery can handle."""

# mypy: disable-error-code="no-untyped-call"
# kombu is untyped in parts.

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import redis
from kombu.transport import redis as stock
from redis import exceptions

from reliable_celery import failover

logger = logging.getLogger(__name__)


class ConnectedChannel(stock.Channel):
    """A channel with one redis-py client; kombu makes one per command, and each copies some 170 callbacks."""

    connection_class: type[redis.Connection] = failover.Connection
    connection_class_ssl: type[redis.SSLConnection] = failover.SSLConnection
    _sync_client: Any = None

    def _create_client(self, asynchronous: bool = False) -> Any:
        if asynchronous:
            return super()._create_client(asynchronous=True)
        if self._sync_client is None:
            self._sync_client = super()._create_client()
        return self._sync_client

    def _disconnect_pools(self) -> None:
        self._sync_client = None
        super()._disconnect_pools()

    def _connparams(self, asynchronous: bool = False) -> dict[str, Any]:
        if self.connection is None or self.connection.client is None:
            # kombu would read attributes of None here; no caller expects that, and the worker would die.
            raise exceptions.ConnectionError("the channel's connection is closed")
        params: dict[str, Any] = super()._connparams(asynchronous)
        return params

    def attempt(self, action: Callable[[], object]) -> None:
        """Run an action that may fail: unacknowledged messages are redelivered."""
        try:
            action()
        except (*self.connection_errors, self.ResponseError):
            logger.warning(
                "Redis is unavailable: unacknowledged messages return after the visibility timeout",
                exc_info=True,
            )
