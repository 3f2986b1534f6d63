"""Send commands from a Python app and get their results; needs only Celery and the message classes."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from uuid import uuid4

from amqp.exceptions import MessageNacked, NotFound
from celery.exceptions import TimeoutError as NoResultInTime
from kombu.exceptions import EncodeError, KombuError

from messaging import tracing
from messaging.brokers import topology
from messaging.brokers.signing import Signing
from messaging.client.answers import (
    Answer,
    CommandFailed,
    NotAnswered,
    Outcome,
    Told,
    declared_errors,
    send_again,
)
from messaging.client.app import close_app, make_app
from messaging.errors import Unavailable
from messaging.messages import IDEMPOTENCY_KEY, SENT_AT, Command, task_name, to_dict
from messaging.texts import cut
from reliable_celery.sentinel import Sentinel

#: Seconds between attempts to send what the broker has refused to store; a new leader takes about one.
NACKED_PAUSES_S = (0.1, 0.2, 0.4, 0.8, 1.6)
#: Raised by kombu when the broker is unavailable, does not confirm, or was never set up by a worker.
CONNECTION_ERRORS = (KombuError, OSError, NotFound)

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
        self.app = make_app(project, broker_url, backend_url, sentinel or Sentinel(), ca_file)
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
            kombu.exceptions.EncodeError: a field cannot be written as JSON, or the message not be signed.
        """
        return self.answer(self.delay(command, key=key), timeout_s)

    def delay(self, command: Command, *, key: str | None = None) -> Answer:
        """Send a command and return without waiting for its answer; the broker has confirmed the message.

        Raises:
            Unavailable: the broker was unavailable for some seconds.
            kombu.exceptions.EncodeError: as `call`.
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
            result.backend.remove_pending_result(result)  # Celery keeps it until the answer comes
            raise NotAnswered(
                f"Sent, not answered in {timeout_s:g} s; {send_again(result.key)}", result.key
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
            kombu.exceptions.EncodeError: as `call`, for a whole message of commands.
        """
        answered = 0
        for batch in _ahead(self._sent_batches(iter(commands), size), in_flight):
            outcomes = self._outcomes(*batch, timeout_s)
            answered += len(outcomes)
            if progress is not None:
                progress(answered)
            yield from outcomes

    def send_lines(
        self, task_id: str, lines: Sequence[Sequence[Any]], traces: Sequence[str | None] = ()
    ) -> None:
        """Send commands as `[task, fields, key]` in one message of this id; the broker has confirmed it.

        `traces` are the traces that the commands belong to, in the same order.

        Raises:
            Unavailable: the broker stayed away for some seconds.
        """
        shown = f"([{cut(repr(lines[0]))}, …{len(lines)} commands],)"
        with self._clear_errors(""):  # each command has a key of its own
            self._send(f"{self.project}.many", task_id, task_id, shown, args=(lines,), traces=traces)

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
        answers = zip(task_ids, map(Told.of, metas), strict=True)
        return {task_id: told for task_id, told in answers if told is not None}

    def close(self) -> None:
        """Close this thread's connections to the results; another client can read the answers by their ids.

        Those of other threads are closed when Python's garbage collector finds them. Connections to the
        broker stay in kombu's pool, which all apps of a process share.
        """
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

    def _send_once(
        self, task: str, task_id: str, key: str, shown: str, traces: Sequence[str | None] = (), **message: Any
    ) -> Answer:
        with tracing.sending(
            self._system, f"{self.project}.commands", task_id, task_id, links=traces
        ) as headers:
            traced: dict[str, Any] = {tracing.TRACES: list(traces)} if tracing.worth_sending(traces) else {}
            answer: Answer = self.app.send_task(
                task,
                task_id=task_id,
                result_cls=partial(Answer, app=self.app),
                **self._route,
                argsrepr=shown,
                kwargsrepr="{}",
                confirm_timeout=topology.CONFIRM_TIMEOUT_S,
                headers={IDEMPOTENCY_KEY: key, SENT_AT: time.time(), **headers, **traced},
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
            if not isinstance(cause, away) or isinstance(cause, EncodeError):
                raise
            raise Unavailable(
                f"The {_server(error)} is unavailable ({type(cause).__name__}); {send_again(key)}"
            ) from None


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
    except (Unavailable, EncodeError):
        yield from waiting
        raise
    yield from waiting
