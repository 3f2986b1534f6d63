"""Send commands from a Python app and get their results; needs only Celery and the message classes."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from uuid import uuid4

from amqp.exceptions import MessageNacked, NotFound
from celery import Celery, states
from celery.backends.redis import RedisBackend
from celery.exceptions import TimeoutError as NoResultInTime
from celery.result import AsyncResult
from kombu.exceptions import KombuError

from messaging import errors, tracing
from messaging.brokers import tls, topology
from messaging.brokers.signing import Signing
from messaging.errors import MessagingError, Unavailable
from messaging.messages import IDEMPOTENCY_KEY, SENT_AT, Command, task_name, to_dict
from messaging.texts import cut
from reliable_celery.sentinel import Sentinel, is_sentinel

#: Publishing gives up after some seconds: a clear error is better than a hang.
PUBLISH_RETRY = {"max_retries": 3, "interval_start": 0.1, "interval_step": 0.4, "interval_max": 1.0}
#: Seconds between attempts to send what the broker has refused to store; a new leader takes about one.
NACKED_PAUSES_S = (0.1, 0.2, 0.4, 0.8, 1.6)
#: Time limits on a connection's waits; Celery itself would wait for longer.
CONNECT_TIMEOUT_S = 4
#: Raised by kombu when the broker is unavailable, does not confirm, or was never set up by a worker.
CONNECTION_ERRORS = (KombuError, OSError, NotFound)


class NotAnswered(MessagingError):
    """A command was sent, and its answer did not come in time; it is safe to send it again with `key`.

    `key` is empty when only the message's id was known: its sender has the key.
    """

    def __init__(self, text: str, key: str = "") -> None:
        super().__init__(text)
        self.key = key


class CommandFailed(MessagingError):
    """The handler raised an unexpected error; the text names its class."""


class Answer(AsyncResult):  # type: ignore[misc]  # Celery is untyped
    """Celery's `AsyncResult`, but silent when it is discarded while its backend is unavailable.

    `key` is the idempotency key that the command was sent with.
    """

    key = ""

    def __del__(self) -> None:
        """Stop listening for the answer."""
        with suppress(Exception):
            super().__del__()


@dataclass(frozen=True)
class Outcome:
    """The outcome of one of many commands: a result, or an error."""

    key: str  # its idempotency key
    command: Command
    result: Any = None
    error: Exception | None = None


@dataclass(frozen=True)
class Told:
    """What a message with many commands was answered: a line for each of them, or an error for all."""

    lines: Sequence[
        Mapping[str, Any]
    ] = ()  # {"id": key, "result"} or {"id": key, "error": {"type", "message"}}
    error: Mapping[str, str] | None = None  # {"type", "message"}


Batch = tuple[list[tuple[str, Command]], Answer]  # commands with their keys, sent in one message


class Client:
    """Sends the commands of one project. One client serves a whole process, its threads included."""

    def __init__(
        self,
        project: str,
        broker_url: str,
        backend_url: str,
        *,
        refusals: Iterable[type[Exception]] = (),
        timeout_s: float = 10.0,
        signing: Signing | None = None,
        ca_file: Path | None = None,
        sentinel: Sentinel | None = None,
    ) -> None:
        """Connects on first use. `refusals` are the project's errors, `timeout_s` is the default wait.

        `signing` signs every message; `ca_file` is trusted in `rediss://`, `sentinels://` and `amqps://`
        addresses. `sentinel` is how the Sentinels of a `sentinel://` address are asked.
        """
        self.project = project
        self.timeout_s = timeout_s
        self.app = Celery(
            f"{project}.client",
            broker=topology.address(broker_url),
            backend=topology.address(backend_url) if is_sentinel(backend_url) else backend_url,
            set_as_current=False,
        )
        self.app.conf.update(
            _settings(broker_url, backend_url, sentinel or Sentinel(), ca_file)
            | tls.settings(broker_url, backend_url, ca_file)
        )
        if signing is not None:
            signing.switch_on(self.app)
        self._system = topology.system(broker_url)
        self._route = topology.route_of_commands(project, broker_url)
        self._errors = declared_errors(refusals)

    def call(self, command: Command, *, key: str | None = None, timeout_s: float | None = None) -> Any:
        """Send a command, wait for its answer and return the result.

        `key` is the idempotency key, chosen by the caller (1 to 255 characters): once a command with it
        has succeeded, a repeat returns the first result. After an error a repeat is attempted anew. Without
        a key, each call is a separate command.

        Raises:
            Unavailable: the broker or the result backend is unavailable, so perhaps nothing was sent.
            NotAnswered: it was sent, but no answer came within `timeout_s` seconds.
            MessagingError, or one of the refusals: raised by the worker.
        """
        return self.answer(self.delay(command, key=key), timeout_s)

    def delay(self, command: Command, *, key: str | None = None) -> Answer:
        """Send a command and return without waiting for its answer; the broker has confirmed the message.

        Raises:
            Unavailable: the broker or the result backend was unavailable for some seconds.
        """
        task_id = str(uuid4())  # a new one for each message: its result is found by it
        key = task_id if key is None else key
        shown = cut(repr(command))
        with self._clear_errors(key):
            return self._send(
                task_name(self.project, type(command)), task_id, key, shown, kwargs=to_dict(command)
            )

    def answer(self, result: Answer | str, timeout_s: float | None = None) -> Any:
        """Wait for the answer to a command, given the `Answer` that `delay` returned, or its id.

        Raises as `call`.
        """
        timeout_s = self.timeout_s if timeout_s is None else timeout_s
        result = Answer(result, app=self.app) if isinstance(result, str) else result
        try:
            with self._clear_errors(result.key):
                # In Celery 0 means for ever; disable_sync_subtasks: the caller may itself be a task.
                value = result.get(
                    timeout=max(timeout_s, 0.001), propagate=False, disable_sync_subtasks=False
                )
        except NoResultInTime:
            raise NotAnswered(
                f"Sent, not answered in {timeout_s:g} s; {_again(result.key)}", result.key
            ) from None
        if isinstance(value, BaseException):
            raise self._rebuilt(type(value).__name__, str(value))
        return value

    def many(
        self,
        commands: Iterable[Command | tuple[str, Command]],
        *,
        size: int = 100,
        in_flight: int = 8,
        progress: Callable[[int], object] | None = None,
        timeout_s: float = 60.0,
    ) -> Iterator[Outcome]:
        """Send any number of commands, `size` per message, and yield each outcome in order.

        At most `size * in_flight` commands are held at a time. Pass a pair to give a command your own key.
        `progress` is called with the number answered so far. A command that is refused, or not answered in
        `timeout_s` seconds, is an outcome with an error.

        Raises:
            Unavailable: the broker is still unavailable; commands not yielded by then may not have been sent.
        """
        answered = 0
        for batch in _ahead(self._sent_batches(iter(commands), size), in_flight):
            outcomes = self._outcomes(*batch, timeout_s)
            answered += len(outcomes)
            if progress is not None:
                progress(answered)
            yield from outcomes

    def send_lines(self, task_id: str, lines: Sequence[Sequence[Any]]) -> None:
        """Send commands as `[task, fields, key]` in one message of this id; the broker has confirmed it.

        Raises:
            Unavailable: the broker stayed away for some seconds.
        """
        shown = f"([{cut(repr(lines[0]))}, …{len(lines)} commands],)"
        with self._clear_errors(""):  # each command has a key of its own
            self._send(f"{self.project}.many", task_id, task_id, shown, args=(lines,))

    def told(self, task_ids: Sequence[str]) -> dict[str, Told]:
        """Return the answers that have come to messages of `send_lines`, by task id, without waiting.

        Raises:
            Unavailable: the result backend is away.
        """
        backend = self.app.backend
        with self._clear_errors(""):
            if hasattr(backend, "mget"):
                values = backend.mget([backend.get_key_for_task(task_id) for task_id in task_ids])
                metas = [backend.decode(value) if value else {} for value in values]
            else:
                metas = [backend.get_task_meta(task_id, cache=False) for task_id in task_ids]
        answers = zip(task_ids, map(_told, metas), strict=True)
        return {task_id: told for task_id, told in answers if told is not None}

    def close(self) -> None:
        """Close the connections; another client can still read the answers by their ids."""
        close_app(self.app)

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    def _send(self, task: str, task_id: str, key: str, shown: str, **message: Any) -> Answer:
        """Send, and send again while a RabbitMQ cluster refuses it, since it is choosing a queue's leader."""
        for pause_s in NACKED_PAUSES_S:
            try:
                return self._send_once(task, task_id, key, shown, **message)
            except KombuError as error:
                if not isinstance(error.__cause__, MessageNacked):
                    raise
            time.sleep(pause_s)
        return self._send_once(task, task_id, key, shown, **message)

    def _send_once(self, task: str, task_id: str, key: str, shown: str, **message: Any) -> Answer:
        with tracing.sending(self._system, f"{self.project}.commands", task_id, task_id) as headers:
            answer: Answer = self.app.send_task(
                task,
                task_id=task_id,
                result_cls=partial(Answer, app=self.app),
                **self._route,
                argsrepr=shown,
                kwargsrepr="{}",
                confirm_timeout=topology.CONFIRM_TIMEOUT_S,
                headers={IDEMPOTENCY_KEY: key, SENT_AT: time.time(), **headers},
                **message,
            )
        answer.key = key
        return answer

    def _sent_batches(self, commands: Iterator[Command | tuple[str, Command]], size: int) -> Iterator[Batch]:
        while items := list(islice(commands, size)):
            name = str(uuid4())
            keyed = [
                item if isinstance(item, tuple) else (f"{name}.{position}", item)
                for position, item in enumerate(items)
            ]
            lines = [
                [task_name(self.project, type(command)), to_dict(command), key] for key, command in keyed
            ]
            shown = f"([{cut(repr(keyed[0][1]))}, …{len(keyed)} commands],)"
            with self._clear_errors(""):  # each command has a key of its own
                sent = self._send(f"{self.project}.many", name, name, shown, args=(lines,))
            sent.key = ""
            yield keyed, sent

    def _outcomes(self, keyed: list[tuple[str, Command]], sent: Answer, timeout_s: float) -> list[Outcome]:
        try:
            answers = self.answer(sent, timeout_s)
        except NotAnswered as late:
            return [Outcome(key, command, error=NotAnswered(str(late), key)) for key, command in keyed]
        except Exception as error:  # noqa: BLE001  it becomes the outcome of each command
            return [Outcome(key, command, error=error) for key, command in keyed]
        return [
            Outcome(key, command, answer.get("result"), self._error_of(answer))
            for (key, command), answer in zip(keyed, answers, strict=True)
        ]

    def _error_of(self, answer: Mapping[str, Any]) -> Exception | None:
        error = answer.get("error")
        return self._rebuilt(error["type"], error["message"]) if error else None

    def _rebuilt(self, name: str, text: str) -> Exception:
        """Return our own error of that name; only declared errors are ever rebuilt."""
        kind = self._errors.get(name)
        return kind(text) if kind else CommandFailed(f"{name}: {text}")

    @contextmanager
    def _clear_errors(self, key: str) -> Iterator[None]:
        """Turn the errors of unavailable services into one error, without their addresses."""
        away: tuple[type[Exception], ...] = (
            *CONNECTION_ERRORS,
            *getattr(self.app.backend, "connection_errors", ()),
        )
        try:
            yield
        except NoResultInTime:
            raise
        except Exception as error:
            # Celery wraps the backend's error in a RuntimeError after its last retry.
            cause = error.__cause__ if isinstance(error, RuntimeError) else error
            if not isinstance(cause, away):
                raise
            raise Unavailable(
                f"The {_server(error)} is unavailable ({type(cause).__name__}); {_again(key)}"
            ) from None


def _again(key: str) -> str:
    """Say how to send a command again; with any other key it could be carried out twice."""
    named = f"the idempotency key {key!r}" if key else "its idempotency key"
    return f"send it again with {named}"


def close_app(app: Celery) -> None:
    """Close a sender's app with its connections to the results, which Celery itself never closes."""
    if isinstance(app.backend, RedisBackend):
        consumer = app.backend.result_consumer
        consumer.stop()
        # A result that is discarded later would open a connection to end its subscription.
        consumer.subscribed_to.clear()
        app.backend.client.connection_pool.disconnect()
    app.close()


def _server(error: Exception) -> str:
    """Return which server does not answer, if the error says so."""
    if isinstance(error, (KombuError, NotFound)):
        return "broker"
    return "result backend" if isinstance(error, RuntimeError) else "broker or the result backend"


def _ahead(batches: Iterator[Batch], count: int) -> Iterator[Batch]:
    """Yield in order, with up to `count` in flight; if sending fails, first yield those that were sent."""
    waiting: deque[Batch] = deque()
    try:
        for batch in batches:
            waiting.append(batch)
            if len(waiting) >= count:
                yield waiting.popleft()
    except Unavailable:
        yield from waiting
        raise
    yield from waiting


def _settings(broker_url: str, backend_url: str, sentinel: Sentinel, ca_file: Path | None) -> dict[str, Any]:
    secure = tls.redis(ca_file)
    return {
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


def _told(meta: Mapping[str, Any]) -> Told | None:
    """Read what Celery stored of a task; None while it has not ended."""
    state = meta.get("status")
    result: Any = meta.get("result")
    if state == states.SUCCESS:
        if isinstance(result, list) and all(isinstance(line, dict) and "id" in line for line in result):
            return Told(lines=result)
        return Told(error={"type": "UnreadableAnswer", "message": cut(repr(result))})
    if state not in states.PROPAGATE_STATES:
        return None
    if isinstance(result, BaseException):  # a backend that rebuilds it
        return Told(error={"type": type(result).__name__, "message": str(result)})
    texts = result.get("exc_message") or ""
    text = texts if isinstance(texts, str) else str(next(iter(texts), ""))
    return Told(error={"type": str(result.get("exc_type")), "message": text})


def declared_errors(refusals: Iterable[type[Exception]]) -> dict[str, type[Exception]]:
    """Return the errors that a sender is told, by name: those of every project, and a project's own."""
    found: list[type[Exception]] = [
        kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, MessagingError)
    ]
    return {kind.__name__: kind for kind in (*found, *refusals)}
