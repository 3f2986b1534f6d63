"""Celery's consumer, but a message that no task can run becomes a dead letter instead of ending the worker.

Setting: `worker_consumer = "reliable_celery.consumer:Consumer"`; the modules `checks`, `stores` and `poison`
have settings of their own. A subclass may choose the store for dead letters and the error that senders get.
All of this runs in the main thread of the worker's main process. (docs/adr/031)
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from celery import Task, signals
from celery.exceptions import ImproperlyConfigured, NotRegistered
from celery.utils.objects import Bunch

from reliable_celery.checks import MAX_NAME, RUNS_OTHERS, Limits, check_message, timestamp
from reliable_celery.dead_letters import DeadLetter, DeadLetterStore
from reliable_celery.errors import InvalidMessage, MessageRefused
from reliable_celery.groups.consumer import GroupingConsumer
from reliable_celery.letters import MAX_KEPT_BYTES, fields_of, letter_of, short_text
from reliable_celery.poison import PoisonCount
from reliable_celery.prompt import PromptConsumer
from reliable_celery.reconnecting import ReconnectingConsumer
from reliable_celery.requests import Request
from reliable_celery.routing import was_delayed_by_broker
from reliable_celery.stores import store_of
from reliable_celery.task_events import BatchingConsumer

logger = logging.getLogger(__name__)

MAX_ERROR = 1_000  # characters
TRY_AGAIN_S = 30.0  # seconds until an unrecorded message is requeued where there is no visibility timeout


class Consumer(BatchingConsumer, GroupingConsumer, PromptConsumer, ReconnectingConsumer):
    """Checks each message before Celery sees it, and records those that it refuses."""

    #: The request class of tasks that do not set one; a subclass may choose another.
    request_class: type[Request] = Request

    def __init__(self, on_task_request: Callable[[Any], object], *args: Any, **kwargs: Any) -> None:
        super().__init__(on_task_request, *args, **kwargs)
        max_crashes = self.app.conf.get("message_max_crashes")
        run = self.on_task_request
        if max_crashes is not None:
            run = PoisonCount(self, max_crashes).counting(run)
        # Not always called while its own message is received: a group runs several requests.
        self.on_task_request = lambda request: self._handle(run, request, request.message)
        self.groups = self.open_groups(self.app.conf.get("message_group_max") or 1)
        self.dead_letters = self.open_dead_letters()

    # What a subclass may decide

    def open_dead_letters(self) -> DeadLetterStore:
        """Return the store for dead letters; called once, when the worker starts."""
        return store_of(self.app)

    def error_for(self, exc: Exception) -> Exception:
        """Return the error that the sender of a refused message gets."""
        if isinstance(exc, MessageRefused | NotRegistered):
            return exc
        return InvalidMessage("body", f"cannot be read: {exc}"[:MAX_ERROR])

    def tell(self, message: Any, error: Exception, request: Any) -> None:  # noqa: ARG002  for subclasses
        """Store `error` as the result of a refused message; `request` has its id and reply address."""
        self.app.backend.mark_as_failure(request.id, error, request=request)

    # Celery's own hooks

    def update_strategies(self) -> None:
        """Use our request class for tasks that do not set one."""
        for task in self.app.tasks.values():
            if task.Request == Task.Request:
                task.Request = self.request_class
        super().update_strategies()

    def connect(self) -> Any:
        """Connect, and have our transport hold leases and pass on items that are no messages."""
        connection = super().connect()
        if connection.transport.driver_type == "amqp":
            from reliable_celery.rabbitmq import take_every_message  # workers on Redis do not load it

            take_every_message(connection.default_channel)  # on which Celery consumes
        if hasattr(connection.transport, "on_unreadable"):
            if getattr(self.pool, "is_green", False):
                raise ImproperlyConfigured("This transport does not work with the pools gevent and eventlet")
            connection.transport.on_unreadable = self.on_unreadable
            connection.transport.holds_leases = not self.is_solo
            connection.transport.max_item_bytes = self.max_item_bytes
        return connection

    @property
    def max_item_bytes(self) -> int:
        """Return how much of a message our transport reads; a body that may be valid is shorter, encoded."""
        return max(MAX_KEPT_BYTES, 2 * Limits.of(self.app.conf).message_max_bytes)

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        """Let the lease of a lost connection expire: running tasks are cancelled, then redelivered."""
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
            except Exception as exc:  # noqa: BLE001  decoding may raise anything
                self.refuse(message, exc)
                return
            if name not in self.strategies or (name in RUNS_OTHERS and not limits.message_allow_callbacks):
                self.on_unknown_task(None, message, KeyError(name))
            elif not put_off(message):
                self._handle(handle, message, message)

        return on_task_received

    def _handle(self, handle: Callable[[Any], object], received: Any, message: Any) -> None:
        try:
            handle(received)
        except KeyError as exc:
            # The Redis transport treats it as a connection error, so the worker would reconnect for ever.
            self.refuse(message, exc)
        except (*self.connection_errors, *self.channel_errors):
            raise
        except Exception as exc:  # noqa: BLE001  no message may end the worker, whatever Celery raises
            self.refuse(message, exc)

    def on_unreadable(self, queue: str, raw: bytes) -> None:
        """Record an item that is no kombu message; an error raised here keeps it on the broker."""
        error = "is not JSON as kombu writes it"
        if len(raw) > self.max_item_bytes:
            error = f"is over {self.max_item_bytes} bytes (kept: {MAX_KEPT_BYTES})"
        self._record(DeadLetter("not a message", error, raw[:MAX_KEPT_BYTES], queue=queue))

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        self.refuse(message, exc)

    def on_unknown_message(self, body: Any, message: Any) -> None:  # noqa: ARG002  Celery's signature
        self.refuse(message, InvalidMessage("headers", "name no task"))

    def on_invalid_task(self, body: Any, message: Any, exc: Exception) -> None:  # noqa: ARG002  Celery's signature
        self.refuse(message, exc)

    def on_unknown_task(self, body: Any, message: Any, exc: Exception) -> None:  # noqa: ARG002  Celery's signature
        fields = fields_of(message)
        if self.refuse(message, NotRegistered(short_text(fields.get("task"))), "unknown task"):
            signals.task_unknown.send(
                sender=self, message=message, exc=exc, name=fields.get("task"), id=fields.get("id")
            )

    # Refusing

    def refuse(self, message: Any, exc: Exception, reason: str = "") -> bool:
        """Dead-letter `message`, answer its sender, acknowledge it; False when it could not be recorded."""
        if message.acknowledged:
            logger.error("Celery failed on a message that it had already acknowledged", exc_info=exc)
            return False
        error = self.error_for(exc)
        reason = reason or ("invalid message" if isinstance(exc, MessageRefused) else "undecodable body")
        try:
            self._record(letter_of(message, reason, str(error)))
        except Exception:
            logger.exception("A message could not be recorded as a dead letter; it stays on the broker")
            self._leave(message)
            return False
        self._answer(message, error)
        message.ack_log_error(logger, self.connection_errors)
        signals.task_rejected.send(sender=self, message=message, exc=exc)
        return True

    def _record(self, letter: DeadLetter) -> None:
        self.dead_letters.add(letter)
        logger.warning(
            "Dead letter from queue %r: %s, task %r, id %r: %r",
            letter.queue, letter.reason, letter.task, letter.task_id, letter.error,
        )  # fmt: skip

    def _leave(self, message: Any) -> None:
        """Have the broker redeliver `message` later, and free its place in the prefetch until then."""
        forget = getattr(message.channel, "forget", None)
        if forget is not None:
            forget(message.delivery_tag)
        else:
            self.timer.call_after(
                TRY_AGAIN_S, message.reject_log_error, (logger, self.connection_errors, True)
            )

    def _answer(self, message: Any, error: Exception) -> None:
        """Store `error` as the result, so that the sender does not wait for ever."""
        fields = fields_of(message)
        task_id = fields.get("id")
        if (
            not isinstance(task_id, str)
            or not 0 < len(task_id) <= MAX_NAME
            or fields.get("ignore_result") is True
        ):
            return
        asked = {name: short_text(message.properties.get(name)) for name in ("reply_to", "correlation_id")}
        nothing = dict.fromkeys(("root_id", "group", "chord", "chain", "errbacks"))
        request = Bunch(
            id=task_id, name=short_text(fields.get("task")), ignore_result=False, **asked, **nothing
        )
        try:
            self.tell(message, error, request)
            if self.event_dispatcher:
                self.event_dispatcher.send("task-failed", uuid=task_id, exception=repr(error))
        except Exception:
            logger.exception("Could not tell the sender of %r that its message was refused", task_id)


def put_off(message: Any) -> bool:
    """Return a message with a future ETA to the broker; False when it is due.

    A due message loses its ETA: a worker with a slow clock would hold it in one of its few prefetch places.
    """
    fields = message.headers if "task" in message.headers else message.payload
    eta = fields.get("eta")
    if eta is None:
        return False
    put_off_on_broker = getattr(message.channel, "put_off", None)
    if put_off_on_broker is not None and put_off_on_broker(message, timestamp("eta", eta)):
        return True
    if put_off_on_broker is not None or was_delayed_by_broker(message.delivery_info or {}):
        fields["eta"] = None
    return False
