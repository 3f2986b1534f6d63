"""Connections to Redis that take its refusals as a lost connection, so that Celery reconnects.

A replica refuses writes (READONLY), a primary without replicas may (NOREPLICAS, `min-replicas-to-write`), and
so does a server that cannot write to its disk (MISCONF). A replica without its primary refuses everything
(MASTERDOWN), and so does a server while a script runs for long (BUSY). redis-py reports these as errors of a
command, and a worker would end. LOADING is a lost connection already.
"""

# mypy: disable-error-code="misc, no-untyped-call"
# redis-py's classes have untyped bases in part.

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from time import monotonic
from typing import Any

import redis
from celery.exceptions import ImproperlyConfigured
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import MasterDownError, ReadOnlyError, RedisError, ResponseError
from redis.sentinel import SentinelManagedConnection

#: What the text of a refusal begins with. Redis 6.2 reports one inside a script as an error of that script.
REFUSAL = re.compile(r"(ERR Error running script .*-)?(READONLY|NOREPLICAS|MASTERDOWN|MISCONF|BUSY) ")
#: What a server may be that is no broker, by the mode that it reports, and what to do.
UNFIT = {
    "cluster": "Redis Cluster is not supported: kombu has no transport for it. Use one primary with replicas"
    " and Sentinel (`sentinel://…`)",
    "sentinel": "this server is a Sentinel, not the Redis that it watches: name it as `sentinel://host:26379`",
}


class NotThePrimary(RedisConnectionError):
    """The server refuses commands now; connect again, perhaps to another one."""


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
            raise NotThePrimary(f"Redis refuses commands now: {error}") from error


def is_refusal(error: ResponseError) -> bool:
    """Return whether a server refused a command because of its state, whatever the command."""
    return isinstance(error, ReadOnlyError | MasterDownError) or REFUSAL.match(str(error)) is not None


class Connection(NoticesFailover, redis.Connection):
    """A connection over TCP."""


class SSLConnection(NoticesFailover, redis.SSLConnection):
    """A connection over TLS."""


Address = tuple[str, int]
#: The Sentinel that answered last in this process, by the addresses of all. A worker opens some ten
#: connections, each of which would wait for a frozen Sentinel at the head of the list.
answered_last: dict[frozenset[Address], Address] = {}

#: Seconds between two questions of a process who the primary is, and after one that no Sentinel answered.
ASK_EVERY_S, ASK_AGAIN_S = 1.0, 15.0


@dataclass(frozen=True)
class Named:
    """What Sentinel said, and until when a process takes that for true (monotonic seconds)."""

    primary: Address | None
    until: float


#: By the addresses of all Sentinels and the primary's name.
named: dict[tuple[frozenset[Address], str], Named] = {}


class AsksTheLively(SentinelManagedConnection):
    """Asks the Sentinel first that answered last, and goes on asking while it is used.

    After a planned failover Sentinel leaves the old primary as it is for 8 s. Until then it answers whoever
    reads, and those who wait for an announcement get none.
    """

    def check_health(self) -> None:
        """Before each command."""
        self._leave_former_primary()
        super().check_health()

    def can_read(self, *args: Any, **kwargs: Any) -> bool:
        """Before each look for an announcement."""
        self._leave_former_primary()
        return bool(super().can_read(*args, **kwargs))

    def _connect_retry(self, *args: Any, **kwargs: Any) -> Any:
        if getattr(self, "_sock", None):
            return None
        self._put_the_lively_first()
        connected = super()._connect_retry(*args, **kwargs)
        self._note((self.host, self.port))
        return connected

    def _leave_former_primary(self) -> None:
        """Ask again after a while.

        Raises:
            NotThePrimary: Sentinel names another server.
        """
        if not getattr(self, "_sock", None):
            return
        known = named.get(self._asked_for)
        if known is None or monotonic() > known.until:
            known = self._ask()
        if known.primary not in (None, (self.host, self.port)):
            former = self.host, self.port
            self.disconnect()
            raise NotThePrimary(f"Sentinel names another primary than {former}: {known.primary}")

    def _ask(self) -> Named:
        manager = self.connection_pool.sentinel_manager
        named[self._asked_for] = Named(None, monotonic() + ASK_AGAIN_S)  # other threads do not ask as well
        self._put_the_lively_first()
        try:
            primary = manager.discover_master(self.connection_pool.service_name)
        except (RedisError, OSError):
            return named[self._asked_for]  # perhaps a failover is under way; Redis itself may go on
        return self._note(primary)

    def _put_the_lively_first(self) -> None:
        manager, last = self.connection_pool.sentinel_manager, answered_last.get(self._asked_for[0])
        if last not in (None, _address(manager.sentinels[0])):
            # A list that is sorted in place is empty meanwhile, for other threads.
            manager.sentinels = sorted(manager.sentinels, key=lambda one: _address(one) != last)

    def _note(self, primary: Address) -> Named:
        first = self.connection_pool.sentinel_manager.sentinels[0]  # where redis-py puts who answered
        answered_last[self._asked_for[0]] = _address(first)
        named[self._asked_for] = known = Named(primary, monotonic() + ASK_EVERY_S)
        return known

    @cached_property
    def _asked_for(self) -> tuple[frozenset[Address], str]:
        pool = self.connection_pool
        return frozenset(map(_address, pool.sentinel_manager.sentinels)), pool.service_name


def _address(sentinel: redis.Redis) -> Address:
    where = sentinel.connection_pool.connection_kwargs
    return where["host"], where["port"]


class SentinelConnection(NoticesFailover, AsksTheLively):
    """A connection to the primary that Sentinel names."""


class SentinelSSLConnection(NoticesFailover, AsksTheLively, redis.SSLConnection):
    """The same over TLS."""


#: What redis-py and kombu use, and ours instead.
OURS = {redis.Connection: Connection, redis.SSLConnection: SSLConnection}
