"""Celery's Redis result backend with one round trip per success, and no wait for it in the solo pool.

Setting: `result_backend = "reliable_celery.results:ResultBackend+redis://…"`. Keys, values and
announcements stay Celery's, so a sender keeps its plain `redis://` address. (docs/adr/011)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from celery import states
from celery.backends.redis import RedisBackend, SentinelBackend
from celery.exceptions import BackendError, BackendStoreError
from kombu.utils.encoding import bytes_to_str
from redis import Connection, SSLConnection
from redis.exceptions import OutOfMemoryError, RedisError, ResponseError

from reliable_celery import failover, sentinel

#: Stores and announces a result even on a full Redis, which runs scripts that begin by freeing memory.
#: KEYS: the result's key. ARGV: the result, the options of SET.
SET_THOUGH_FULL = """
redis.call('DEL', KEYS[1])
redis.call('SET', KEYS[1], unpack(ARGV))
redis.call('PUBLISH', KEYS[1], ARGV[1])
"""


@dataclass
class Unconfirmed:
    """A result whose replies from Redis have not been read yet."""

    task_id: str
    key: str | bytes
    value: str | bytes
    stored: Callable[[], object] = lambda: None
    lost: Callable[[Exception], object] = lambda _error: None
    is_awaited: bool = False  # one of the two will be called


class ResultBackend(RedisBackend):
    """Writes a success without first reading the stored result.

    Celery reads first so that nothing replaces a success. Here another success may, when a redelivered
    message ran twice. Every other state is written as in Celery.
    """

    connection_class_ssl: type[SSLConnection] = failover.SSLConnection
    _call_soon: Callable[[Callable[[], None]], object] | None = None
    _connection: Connection | None = None  # on which the replies to `_unconfirmed` will come
    _unconfirmed: Sequence[Unconfirmed] = ()
    _held: list[Unconfirmed] | None = None  # collected by `together`, not yet sent

    def _params_from_url(self, url: str, defaults: dict[str, Any]) -> dict[str, Any]:
        """Connect by connections that notice a failover."""
        params: dict[str, Any] = super()._params_from_url(url, defaults)
        used = params.get("connection_class", Connection)
        params["connection_class"] = failover.OURS.get(used, used)
        return params

    def confirm_later(self, call_soon: Callable[[Callable[[], None]], object]) -> None:
        """Let the next task start while Redis stores a success; `call_soon` is the event loop's.

        Only where that loop runs the tasks itself, one at a time: it keeps each message, and acknowledges it
        when `when_stored` calls back.
        """
        self._call_soon = call_soon

    def when_stored(
        self, task_id: str, stored: Callable[[], object], lost: Callable[[Exception], object]
    ) -> bool:
        """Call one of the two when Redis has replied about this result; False when that is already known.

        The result of another message with this id is not this one's.
        """
        last = self._held or self._unconfirmed
        if not last or last[-1].task_id != task_id or last[-1].is_awaited:
            return False
        last[-1].stored, last[-1].lost, last[-1].is_awaited = stored, lost, True
        return True

    @contextmanager
    def together(self) -> Iterator[None]:
        """Send the successes that are stored in this block in one message, at its end."""
        self.confirm()
        self._held = []
        try:
            yield
        finally:
            held, self._held = self._held, None
            if held and not self._send(held):
                for one in held:
                    self._store_now(one)
            if self._call_soon is None:
                self.confirm()

    def _store_now(self, one: Unconfirmed) -> None:
        try:
            self._set_with_state(one.key, one.value, states.SUCCESS)
        except (BackendError, RedisError, OSError) as error:
            one.lost(error)
        else:
            one.stored()

    def confirm(self) -> None:
        """Read Redis' replies to the last results."""
        connection, waiting = self._connection, self._unconfirmed
        self._connection, self._unconfirmed = None, ()
        if connection is None:
            return
        try:
            for one in waiting:
                self._confirm_one(one, connection)
        finally:
            self.client.connection_pool.release(connection)

    def _confirm_one(self, one: Unconfirmed, connection: Connection) -> None:
        try:
            self._read_replies(one, connection)
        except ResponseError as error:
            one.lost(error)
        except (RedisError, OSError) as error:
            # The other replies may be on their way; they are lost as well.
            connection.disconnect()  # type: ignore[no-untyped-call]
            one.lost(error)
        else:
            one.stored()

    def _read_replies(self, one: Unconfirmed, connection: Connection) -> None:
        if not connection.is_connected:
            raise ConnectionResetError("the connection was lost before Redis confirmed the result")
        refusal: ResponseError | None = None
        try:
            connection.read_response()  # to SET
        except ResponseError as error:
            refusal = error
        connection.read_response()  # to PUBLISH
        if isinstance(refusal, OutOfMemoryError):
            self._set_though_full(one.key, one.value, self.expires, refusal)
        elif refusal is not None:
            raise refusal

    def _set_though_full(
        self, key: str | bytes, value: str | bytes, life: int | None, error: OutOfMemoryError
    ) -> None:
        """Store a result although the broker's Redis is full: the result's message then leaves it.

        Without this, a Redis full of commands could never be drained. It does not apply to results on another
        server, where a settled message frees no room.
        """
        if not same_server(str(self.app.conf.broker_url), str(self.url)):
            raise error
        self.client.eval(SET_THOUGH_FULL, 1, key, value, *_life_options(life))

    def _store_result(
        self,
        task_id: str,
        result: Any,
        state: str,
        traceback: str | None = None,
        request: Any = None,
        **kwargs: Any,
    ) -> Any:
        if self._held is None:
            self.confirm()
        try:
            if state != states.SUCCESS:
                return super()._store_result(task_id, result, state, traceback, request=request, **kwargs)
            meta = self._get_result_meta(result=result, state=state, traceback=traceback, request=request)
            meta["task_id"] = bytes_to_str(task_id)
            key, value = self.get_key_for_task(task_id), self.encode(meta)
            if not self._stored_later(Unconfirmed(task_id, key, value)):
                self._set_with_state(key, value, state)
        except (BackendError, RedisError, OSError, failover.UnfitServer) as error:
            raise BackendStoreError(str(error), state=state, task_id=task_id) from error
        return result

    def mark_as_failure(self, task_id: str, exc: BaseException, *args: Any, **kwargs: Any) -> Any:
        """Do not report that an answer could not be stored: the message is redelivered and answered then.

        If Redis is back by now, Celery would tell the sender as if this were the outcome of the task.
        """
        if not isinstance(exc, BackendError):
            return super().mark_as_failure(task_id, exc, *args, **kwargs)
        return None

    def mark_as_revoked(
        self, task_id: str, reason: str = "", request: Any = None, *args: Any, **kwargs: Any
    ) -> Any:
        """Tell the sender of a revocation only when a worker holds the message.

        The control command would tell it from every worker, even while another one runs the task.
        """
        return None if request is None else super().mark_as_revoked(task_id, reason, request, *args, **kwargs)

    def _stored_later(self, result: Unconfirmed) -> bool:
        """Send a result, or keep it for the end of `together`; False when it has to be stored at once."""
        if self._held is not None:
            self._held.append(result)
            return True
        return self._call_soon is not None and self._send([result])

    def _send(self, results: Sequence[Unconfirmed]) -> bool:
        """Send results and let `confirm` read the replies; False when they could not be sent."""
        pool = self.client.connection_pool
        commands = [command for one in results for command in self._commands(one.key, one.value)]
        try:
            connection = pool.get_connection()
        except (RedisError, OSError):
            return False
        try:
            connection.send_packed_command(connection.pack_commands(commands))
        except (RedisError, OSError):
            pool.release(connection)
            return False
        self._connection, self._unconfirmed = connection, results
        if self._call_soon is not None:
            self._call_soon(self.confirm)
        return True

    def _set(self, key: str | bytes, value: str | bytes, expires: int | None = None) -> None:
        with self.client.pipeline(transaction=False) as pipe:
            for command in self._commands(key, value, expires):
                pipe.execute_command(*command)
            try:
                pipe.execute()
            except OutOfMemoryError as error:
                self._set_though_full(key, value, expires or self.expires, error)

    def _commands(
        self, key: str | bytes, value: str | bytes, expires: int | None = None
    ) -> list[tuple[Any, ...]]:
        """Store and announce a result; MULTI around the two would double the replies to read."""
        return [("SET", key, value, *_life_options(expires or self.expires)), ("PUBLISH", key, value)]


class SentinelResultBackend(ResultBackend, SentinelBackend):
    """The same on the primary that Sentinel names, also after a failover.

    Options in `result_backend_transport_options`: Celery's `master_name` and `sentinel_kwargs`.
    """

    connection_class_ssl = failover.SentinelSSLConnection

    def _params_from_url(self, url: str, defaults: dict[str, Any]) -> dict[str, Any]:
        """Connect by connections that ask Sentinel and notice a failover."""
        params: dict[str, Any] = SentinelBackend._params_from_url(self, url, defaults)
        params.setdefault("connection_class", failover.SentinelConnection)
        return params


def _life_options(life: int | None) -> tuple[str | int, ...]:
    return ("EX", life) if life else ()


def address(url: str) -> str:
    """Return Celery's `result_backend` for an address; other addresses than Redis stay as they are."""
    if sentinel.is_sentinel(url):
        return f"{__name__}:{SentinelResultBackend.__name__}+{sentinel.as_celery(url)}"
    if not url.startswith(("redis:", "rediss:", "redis+socket:")):
        return url
    return f"{__name__}:{ResultBackend.__name__}+{url.removeprefix('redis+')}"


def same_server(url: str, other_url: str) -> bool:
    """Whether two Redis addresses name the same server, whatever their databases."""
    if sentinel.is_sentinel(url) and sentinel.is_sentinel(other_url):
        return sentinel.hosts(url) == sentinel.hosts(other_url)
    if sentinel.is_sentinel(url) or sentinel.is_sentinel(other_url):
        return False
    parts, others = urlsplit(url), urlsplit(other_url)
    if parts.scheme.endswith("socket") and others.scheme.endswith("socket"):
        return parts.path == others.path
    return bool(parts.hostname) and (parts.hostname, parts.port) == (others.hostname, others.port)
