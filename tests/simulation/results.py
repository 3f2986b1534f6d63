"""A result store in memory, behind the backend that workers really use."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from celery.exceptions import TimeoutError as NoResultInTime
from redis.exceptions import ConnectionError as RedisConnectionError

from reliable_celery.results import ResultBackend
from tests.simulation.scheduler import Fault, current, step

FAULTS = (Fault.CRASH_BEFORE, Fault.CRASH_AFTER, Fault.ERROR_BEFORE, Fault.ERROR_AFTER)


@dataclass
class Results:
    """What is stored by key, and all that ever was."""

    stored: dict[str, bytes] = field(default_factory=dict)
    told: dict[str, list[dict[str, Any]]] = field(
        default_factory=dict
    )  # by task id, each kind of answer once

    def set(self, key: str, value: bytes | str) -> None:
        """Store an answer."""
        raw = value.encode() if isinstance(value, str) else value
        self.stored[key] = raw
        meta = json.loads(raw)
        if meta["status"] in ("SUCCESS", "FAILURE"):
            told = self.told.setdefault(meta["task_id"], [])
            answer = {"status": meta["status"], "result": meta["result"]}
            if answer not in told:
                told.append(answer)


#: The results of the schedule that runs.
current_results: list[Results] = []


class Connection:
    """What the backend needs of a connection: it sends results at once, and reads the replies later."""

    is_connected = True

    def __init__(self) -> None:
        self.arrived = self.lost = False

    def pack_commands(self, commands: Any) -> Any:
        """Leave commands as they are."""
        return commands

    def send_packed_command(self, commands: Any) -> None:
        """Store the results; if the connection is lost after that, the replies are."""
        stored = {_text(command[1]): command[2] for command in commands if command[0] == "SET"}

        def store() -> None:
            self.arrived = True
            for key, value in stored.items():
                current_results[-1].set(key, value)

        try:
            step(
                f"tells {', '.join(_shown(key, value) for key, value in stored.items())}",
                store,
                *FAULTS,
                error=lambda: RedisConnectionError("Connection reset by peer"),
            )
        except RedisConnectionError:
            self.lost = True
            if not self.arrived and _is_noticed():
                raise

    def read_response(self) -> bytes:
        """Return a reply."""
        if self.lost:
            raise RedisConnectionError("Connection reset by peer")
        return b"OK"

    def disconnect(self) -> None:
        """Close it."""
        self.is_connected = False


class ConnectionPool:
    """Makes connections."""

    def get_connection(self) -> Connection:
        """Return a connection."""
        return Connection()

    def release(self, _connection: Connection) -> None:
        """Forget a connection."""


class Redis:
    """What the backend needs of redis-py."""

    connection_pool = ConnectionPool()

    def get(self, key: Any) -> bytes | None:
        """Return a value."""
        return current_results[-1].stored.get(_text(key))

    def delete(self, key: Any) -> None:
        """Delete a value."""
        current_results[-1].stored.pop(_text(key), None)


class Backend(ResultBackend):
    """The worker's backend, whose Redis is simulated."""

    def __init__(self, app: Any) -> None:
        super().__init__(app=app, url="redis://127.0.0.1:1/1")
        self.redis = Redis()

    def begin_anew(self) -> None:
        """Forget what a process that is dead had sent or kept."""
        self._call_soon, self._connection, self._unconfirmed, self._held = None, None, (), None

    @property
    def client(self) -> Any:
        """Return the simulated Redis."""
        return self.redis

    def ensure(self, fun: Callable[..., Any], args: tuple[Any, ...], **_policy: Any) -> Any:
        """Try once."""
        return fun(*args)

    def set(self, key: Any, value: Any, **_kwargs: Any) -> None:
        """Store a value."""
        self._set(key, value)

    def _set(self, key: Any, value: Any, expires: int | None = None) -> None:  # noqa: ARG002  as the backend
        step(
            f"tells {_shown(key, value)}",
            lambda: current_results[-1].set(_text(key), value),
            *FAULTS,
            error=lambda: RedisConnectionError("Connection reset by peer"),
        )

    def on_task_call(self, _producer: Any, _task_id: str) -> None:
        """Listen for nothing: whoever waits looks."""

    def add_pending_result(self, result: Any, weak: bool = False, start_drainer: bool = True) -> Any:  # noqa: ARG002
        """Listen for nothing."""
        return result

    def remove_pending_result(self, result: Any) -> Any:
        """Listen for nothing."""
        return result

    def on_result_fulfilled(self, result: Any) -> None:
        """Listen for nothing."""

    def wait_for_pending(self, result: Any, timeout: float | None = None, **_kwargs: Any) -> Any:
        """Wait for an answer by the simulated clock."""
        process = current()
        key = _text(self.get_key_for_task(result.id))
        stored = current_results[-1].stored
        if process is not None and not process.scheduler.wait_until(
            lambda: key in stored and b'"RETRY"' not in stored[key], f"waits for {result.id[-12:]}", timeout
        ):
            raise NoResultInTime("The operation timed out.")
        meta = self.get_task_meta(result.id, cache=False)
        result._maybe_set_cache(meta)
        return result.maybe_throw(propagate=False)


def _is_noticed() -> bool:
    """Choose whether a connection that is lost refuses what is sent, or takes it and loses it."""
    process = current()
    return process is None or process.scheduler.choices.pick((True, False), 0.3)


def _shown(key: Any, value: Any) -> str:
    meta = json.loads(value)
    shown = meta["result"] if meta["status"] == "SUCCESS" else (meta["result"] or {}).get("exc_type")
    return f"{_text(key)[-12:]} {meta['status']} {shown!r}"


def _text(key: Any) -> str:
    return key.decode() if isinstance(key, bytes) else str(key)
