"""Addresses of Redis behind Sentinel: `sentinel://[user:password@]host:26379/0;sentinel://host2:26379`.

Each address names one Sentinel; the login and the database of the first are those of Redis. `sentinels://` is
the same over TLS. Which primary Sentinel is asked for, and its own login, are options: kombu's `master_name`
and `sentinel_kwargs`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

SCHEMES = ("sentinel", "sentinels")
DEFAULT_PORT = 26379
#: Seconds; a Sentinel that does not answer in time is passed over.
SENTINEL_TIMEOUT_S = 1.0


@dataclass(frozen=True)
class Sentinel:
    """What Sentinel calls the primary, and its own login, which is not that of Redis."""

    master: str = "mymaster"
    username: str | None = None
    password: str | None = field(default=None, repr=False)

    def options(self, url: str, tls: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return Celery's transport options for an address; none if it is not Sentinel's.

        `tls` are redis-py's arguments for TLS, used if the address asks for it.
        """
        if not is_sentinel(url):
            return {}
        # Imported here for senders that use no Redis and need not install it.
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        login = {"username": self.username, "password": self.password}
        secure = {"ssl": True, **(tls or {})} if uses_tls(url) else {}
        waits = {
            "socket_timeout": SENTINEL_TIMEOUT_S,
            "socket_connect_timeout": SENTINEL_TIMEOUT_S,
            "retry": Retry(
                NoBackoff(), 0
            ),  # redis-py would ask a Sentinel that is away four times, with pauses
        }
        given = {name: value for name, value in login.items() if value is not None}
        return {"master_name": self.master, "sentinel_kwargs": {**waits, **given, **secure}}


def is_sentinel(url: str) -> bool:
    """Return whether this is an address of Sentinels."""
    return url.partition("://")[0] in SCHEMES


def uses_tls(url: str) -> bool:
    """Return whether Sentinel and Redis are reached over TLS."""
    return url.startswith("sentinels:")


def hosts(url: str) -> frozenset[tuple[str | None, int]]:
    """Return the Sentinels that an address names."""
    parts = map(urlsplit, url.split(";"))
    return frozenset((part.hostname, part.port or DEFAULT_PORT) for part in parts)


def as_celery(url: str) -> str:
    """Return the address as Celery and kombu read it: each part with a port, and without a scheme for TLS."""
    parts = [urlsplit(part) for part in url.split(";")]
    return ";".join(
        part._replace(
            scheme="sentinel", netloc=part.netloc if part.port else f"{part.netloc}:{DEFAULT_PORT}"
        ).geturl()
        for part in parts
    )
