"""Celery's consumer, but what no task can read becomes a dead letter and an answer instead of a dead worker.

Setting: `worker_consumer = "messaging.worker.consumer:Consumer"`. The app needs `app.runtime.dead_letters`, a
`DeadLetterStore`. Everything here runs in the worker's main process and thread. (docs/adr/031)
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable
from typing import Any

from celery import signals
from celery.exceptions import NotRegistered
from celery.utils.objects import Bunch

from messaging.dead_letters import DeadLetter
from messaging.errors import InvalidMessage
from messaging.messages import Command
from messaging.postgres.inbox import Answer, CommandJob
from messaging.texts import storable
from messaging.worker.message_checks import (
    MAX_DEPTH,
    MAX_NAME,
    RUNS_OTHERS,
    Limits,
    check_message,
    timestamp,
)
from messaging.worker.request import tell
from messaging.worker.solo import SoloConsumer
from messaging.worker.task_events import BatchingConsumer

logger = logging.getLogger(__name__)

MAX_KEPT_BYTES = 16_777_216  # of a dead letter's body; a database row cannot hold what Redis can
MAX_ERROR = 1_000  # characters
DELAYED = re.compile(r"(?:[01]\.){28}")  # how Celery begins the routing key of a message that is to wait
TRY_AGAIN_S = 30.0  # seconds until a broker without a visibility timeout gets an unrecorded message back


class Consumer(BatchingConsumer, SoloConsumer):
    """Checks each message before Celery sees it, and records what it refuses."""

    def connect(self) -> Any:
        """Connect, and have our transport hand over what is no message at all, and hold leases."""
        connection = super().connect()
        if hasattr(connection.transport, "on_unreadable"):
            connection.transport.on_unreadable = self.on_unreadable
            connection.transport.holds_leases = not self.is_solo
        return connection

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        """Let the lease of a lost connection run out: what runs is cancelled, and may go back by then."""
        transport = self.connection and self.connection.transport
        if hasattr(transport, "holds_leases"):
            transport.holds_leases = False
        super().on_connection_error_after_connected(exc)

    def create_task_handler(self, *args: Any, **kwargs: Any) -> Callable[[Any], None]:
        handle = super().create_task_handler(*args, **kwargs)
        limits = Limits.of(self.app.conf)

        def on_task_received(message: Any) -> None:
            try:
                name = check_message(message, limits)
            except Exception as exc:  # noqa: BLE001  decoding raises what the body's author likes
                self.refuse(message, exc)
                return
            if name not in self.strategies or (name in RUNS_OTHERS and not limits.message_allow_callbacks):
                self.on_unknown_task(None, message, KeyError(name))
            elif not put_off(message):
                self._handle(handle, message)

        return on_task_received

    def _handle(self, handle: Callable[[Any], None], message: Any) -> None:
        try:
            handle(message)
        except KeyError as exc:
            # The Redis transport counts it among connection errors, so the worker would reconnect for ever.
            self.refuse(message, exc)
        except (*self.connection_errors, *self.channel_errors):
            raise
        except Exception as exc:  # noqa: BLE001  a message must not end the worker, whatever Celery makes of it
            self.refuse(message, exc)

    # Celery's own hooks for messages that it cannot read

    def on_unreadable(self, queue: str, raw: bytes) -> None:
        """Record what is no kombu message; what is raised here keeps it on the broker."""
        self._record(
            DeadLetter("not a message", "is not JSON as kombu writes it", raw[:MAX_KEPT_BYTES], queue=queue)
        )

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        self.refuse(message, exc)

    def on_unknown_message(self, body: Any, message: Any) -> None:  # noqa: ARG002  Celery's signature
        self.refuse(message, InvalidMessage("headers", "name no task"))

    def on_invalid_task(self, body: Any, message: Any, exc: Exception) -> None:  # noqa: ARG002  Celery's signature
        self.refuse(message, exc)

    def on_unknown_task(self, body: Any, message: Any, exc: Exception) -> None:  # noqa: ARG002  Celery's signature
        fields = _fields_of(message)
        if self.refuse(message, NotRegistered(_text(fields.get("task"))), "unknown task"):
            signals.task_unknown.send(
                sender=self, message=message, exc=exc, name=fields.get("task"), id=fields.get("id")
            )

    def refuse(self, message: Any, exc: Exception, reason: str = "") -> bool:
        """Record `message` as dead letter, answer its sender, acknowledge it; False when recording failed."""
        if message.acknowledged:
            logger.error("Celery stumbled over a message that it had acknowledged", exc_info=exc)
            return False
        known = isinstance(exc, InvalidMessage | NotRegistered)
        error = exc if known else InvalidMessage("body", f"cannot be read: {exc}"[:MAX_ERROR])
        reason = reason or ("invalid message" if known else "undecodable body")
        try:
            self._record(letter_of(message, reason, str(error)))
        except Exception:
            logger.exception("A message could not be recorded as dead letter; it stays on the broker")
            self._leave(message)
            return False
        self._answer(message, error)
        message.ack_log_error(logger, self.connection_errors)
        signals.task_rejected.send(sender=self, message=message, exc=exc)
        return True

    def _record(self, letter: DeadLetter) -> None:
        self.app.runtime.dead_letters.add(letter)
        logger.warning(
            "Dead letter from queue %r: %s, task %r, id %r: %r",
            letter.queue, letter.reason, letter.task, letter.task_id, letter.error,
        )  # fmt: skip

    def _leave(self, message: Any) -> None:
        """Let the broker bring `message` again later, without its place in the prefetch until then."""
        forget = getattr(message.channel, "forget", None)
        if forget is not None:
            forget(message.delivery_tag)
        else:
            self.timer.call_after(
                TRY_AGAIN_S, message.reject_log_error, (logger, self.connection_errors, True)
            )

    def _answer(self, message: Any, error: Exception) -> None:
        """Store `error` as the result, so that the sender does not wait for ever."""
        fields = _fields_of(message)
        task_id = fields.get("id")
        if (
            not isinstance(task_id, str)
            or not 0 < len(task_id) <= MAX_NAME
            or fields.get("ignore_result") is True
        ):
            return
        asked = {name: _text(message.properties.get(name)) for name in ("reply_to", "correlation_id")}
        nothing = dict.fromkeys(("root_id", "group", "chord", "chain", "errbacks"))
        request = Bunch(name=_text(fields.get("task")), ignore_result=False, **asked, **nothing)
        try:
            tell(self.app.backend, task_id, self._outcome(message, task_id, error), request)
            if self.event_dispatcher:
                self.event_dispatcher.send("task-failed", uuid=task_id, exception=repr(error))
        except Exception:
            logger.exception("The sender of %r could not be told that its message was refused", task_id)

    def _outcome(self, message: Any, task_id: str, error: Exception) -> Answer:
        """Return what a message that comes again was answered before: another release may have read it."""
        inbox = getattr(self.app.runtime, "inbox", None)
        if inbox is None or not (message.delivery_info or {}).get("redelivered"):
            return Answer(error=error)
        return inbox.answer(CommandJob(task_id, Command(), task_id)) or Answer(error=error)


def put_off(message: Any) -> bool:
    """Leave a message for later to the broker; False when it is due.

    What is due has no ETA any more: a worker whose clock is behind would hold it in one of its few places.
    """
    fields = message.headers if "task" in message.headers else message.payload
    eta = fields.get("eta")
    if eta is None:
        return False
    put_off_on_broker = getattr(message.channel, "put_off", None)
    if put_off_on_broker is not None and put_off_on_broker(message, timestamp("eta", eta)):
        return True
    if put_off_on_broker is not None or was_delayed_by_broker(message):
        fields["eta"] = None
    return False


def was_delayed_by_broker(message: Any) -> bool:
    """Tell whether a message went through Celery's native delayed delivery on RabbitMQ."""
    return bool(DELAYED.match(str((message.delivery_info or {}).get("routing_key"))))


def _fields_of(message: Any) -> dict[str, Any]:
    """The fields that name the task, wherever the protocol has them; empty when nothing can be read."""
    if not isinstance(message.headers, dict):
        return {}
    if "task" in message.headers or message.errors:
        return message.headers
    try:
        payload = message.payload
    except Exception:  # noqa: BLE001  the reason why this is asked
        return message.headers
    return message.headers | payload if isinstance(payload, dict) else message.headers


def letter_of(message: Any, reason: str, error: str) -> DeadLetter:
    """Return a kombu message, readable or not, as it is kept."""
    fields, delivery = _fields_of(message), message.delivery_info or {}
    body = message.body or b""
    body = body.encode("utf-8", "backslashreplace") if isinstance(body, str) else bytes(body)
    if len(body) > MAX_KEPT_BYTES:
        error = f"{error} (kept: {MAX_KEPT_BYTES} of {len(body)} bytes)"
    return DeadLetter(
        reason=reason,
        error=error,
        body=body[:MAX_KEPT_BYTES],
        task=_text(fields.get("task")),
        task_id=_text(fields.get("id")),
        queue=_text(delivery.get("queue") or delivery.get("routing_key")),
        content_type=_text(message.content_type),
        content_encoding=_text(message.content_encoding),
        headers=_plain(message.headers) if isinstance(message.headers, dict) else {},
        properties=_plain(message.properties) if isinstance(message.properties, dict) else {},
    )


def _text(value: Any) -> str | None:
    """`value` as a short text, None for nothing."""
    return None if value is None else storable(value if isinstance(value, str) else repr(value))[:MAX_NAME]


def _plain(value: Any, room: int = MAX_DEPTH) -> Any:
    """`value` as JSON that any store takes."""
    if value is None or isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if isinstance(value, str):
        return storable(value)
    if room and isinstance(value, dict):
        return {storable(str(key)): _plain(item, room - 1) for key, item in value.items()}
    if room and isinstance(value, list | tuple):
        return [_plain(item, room - 1) for item in value]
    return storable(repr(value) if room else "… nested too deep")
