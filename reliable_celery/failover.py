"""Connections to Redis that take the refusals of a failover as a lost connection, so that Celery reconnects.

A replica refuses writes (READONLY), a primary without replicas may (NOREPLICAS, `min-replicas-to-write`), and
a replica without its primary refuses everything (MASTERDOWN). redis-py reports these as errors of a command,
and a worker would end. LOADING is a lost connection already.
"""

# mypy: disable-error-code="misc, no-untyped-call"
# redis-py's classes have untyped bases in part.

from __future__ import annotations

from typing import Any

import redis
from celery.exceptions import ImproperlyConfigured
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import MasterDownError, ReadOnlyError, ResponseError
from redis.sentinel import SentinelManagedConnection

NO_REPLICAS = "NOREPLICAS"
#: What a server may be that is no broker, by the mode that it reports, and what to do.
UNFIT = {
    "cluster": "Redis Cluster is not supported: kombu has no transport for it. Use one primary with replicas"
    " and Sentinel (`sentinel://…`)",
    "sentinel": "this server is a Sentinel, not the Redis that it watches: name it as `sentinel://host:26379`",
}


class NotThePrimary(RedisConnectionError):
    """The server does not accept writes now; connect again, perhaps to another one."""


class UnfitServer(ImproperlyConfigured):
    """The server is of a kind that can never be a broker or store results; a worker ends."""


class NoticesFailover:
    """Mixed into a connection: looks at the server's mode and at its refusals."""

    handshake_metadata: Any

    def on_connect_check_health(self, *args: Any, **kwargs: Any) -> None:
        """Set the connection up, and refuse servers that are no broker.

        Raises:
            UnfitServer: the text says what to use instead.
        """
        super().on_connect_check_health(*args, **kwargs)
        greeting = self.handshake_metadata or {}
        mode = greeting.get(b"mode", greeting.get("mode", b""))
        if unfit := UNFIT.get(mode.decode() if isinstance(mode, bytes) else mode):
            self.disconnect()  # type: ignore[attr-defined]  # redis-py's
            raise UnfitServer(unfit)

    def read_response(self, *args: Any, **kwargs: Any) -> Any:
        """Return a reply.

        Raises:
            NotThePrimary: after closing the connection, since replies to other commands may follow.
        """
        try:
            return super().read_response(*args, **kwargs)
        except ResponseError as error:
            if not is_refusal(error):
                raise
            self.disconnect()  # type: ignore[attr-defined]  # redis-py's
            raise NotThePrimary(f"Redis accepts no writes now: {error}") from error


def is_refusal(error: ResponseError) -> bool:
    """Return whether a server refused a command because of its role or its replicas."""
    return isinstance(error, ReadOnlyError | MasterDownError) or str(error).startswith(NO_REPLICAS)


class Connection(NoticesFailover, redis.Connection):
    """A connection over TCP."""


class SSLConnection(NoticesFailover, redis.SSLConnection):
    """A connection over TLS."""


Address = tuple[str, int]
#: The Sentinel that answered last in this process, by the addresses of all. A worker opens some ten
#: connections, each of which would wait for a frozen Sentinel at the head of the list.
answered_last: dict[frozenset[Address], Address] = {}


class AsksTheLively(SentinelManagedConnection):
    """Asks the Sentinel first that answered last."""

    def _connect_retry(self, *args: Any, **kwargs: Any) -> Any:
        if getattr(self, "_sock", None):
            return None
        sentinels = self.connection_pool.sentinel_manager.sentinels
        everyone = frozenset(map(_address, sentinels))
        sentinels.sort(key=lambda one: _address(one) != answered_last.get(everyone))
        connected = super()._connect_retry(*args, **kwargs)
        answered_last[everyone] = _address(sentinels[0])  # redis-py puts the one that answered there
        return connected


def _address(sentinel: redis.Redis) -> Address:
    where = sentinel.connection_pool.connection_kwargs
    return where["host"], where["port"]


class SentinelConnection(NoticesFailover, AsksTheLively):
    """A connection to the primary that Sentinel names."""


class SentinelSSLConnection(NoticesFailover, AsksTheLively, redis.SSLConnection):
    """The same over TLS."""


#: What redis-py and kombu use, and ours instead.
OURS = {redis.Connection: Connection, redis.SSLConnection: SSLConnection}
