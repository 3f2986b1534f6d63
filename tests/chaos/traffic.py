"""Another app that sends orders continuously, records them, and repeats those without an answer.

Every message has a new task id. Most commands have an idempotency key; plain senders set none, so their task
id is the key. After any answer the key may be used again, with the same command or another.
"""

# mypy: disable-error-code="no-untyped-call"
# kombu and Celery are untyped in parts.

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

import redis
from celery import Celery
from kombu.exceptions import OperationalError

from local.addresses import Addresses
from tests.chaos.orders import Orders, another
from tests.chaos.sent import Message, Sent

QUEUE = "allocation.commands"
RESULT_KEY = "celery-task-meta-"
FINAL = frozenset({"SUCCESS", "FAILURE", "REVOKED"})

#: Errors after which the sender should send the command again, and how long it waits before that.
TRY_AGAIN = frozenset({"Unavailable"})
BACK_OFF_S = 0.2
INSTANT_S = 0.15  # how long an impatient sender waits

#: Frequencies, as shares of the commands.
PLAIN, TWICE, IMPATIENT, OTHER_AT_ONCE, EXPIRES, MANY, RUSH = 0.2, 0.05, 0.05, 0.02, 0.08, 0.05, 0.05
#: How often a key is repeated after an answer; a third as often it is used for another command.
REPEATED = {"": 0.08, "Expired": 0.6, "InvalidSku": 0.4, "UnknownBatch": 0.4, "InvalidMessage": 0.2}
EXPIRES_S = (-5.0, 0.2, 5.0)


class Traffic:
    """Sends `rate` commands per second; after `patience_s` without an answer it sends again."""

    #: Whether Celery may send a message again by itself.
    publish_retry = False

    def __init__(
        self,
        addresses: Addresses,
        rng: random.Random,
        prefix: str,
        patience_s: float,
        may_expire: bool = True,
    ) -> None:
        """Prepare; it connects and sends later."""
        self.prefix, self.patience_s, self.may_expire = prefix, patience_s, may_expire
        self.rate = 25.0
        self.messages: list[Message] = []
        self._rng, self._dice = rng, random.Random(rng.random())
        self._orders = Orders(rng, prefix)
        self._stop = threading.Event()
        self._closed, self._burst = False, 0
        self._lock = threading.RLock()
        self._later: list[tuple[float, Message]] = []  # due to be sent
        self._connect(addresses)
        # Repeats have a thread of their own: a broker that holds up its senders does not hold up who listens.
        runs = self._send_all, self._repeat_all, self._collect
        self._threads = [threading.Thread(target=run, daemon=True) for run in runs]

    def _connect(self, addresses: Addresses) -> None:
        self.app = Celery("shop", broker=addresses.broker_url, set_as_current=False)
        self.app.conf.task_publish_retry = False
        on_redis = addresses.broker_url.startswith("redis")
        self.app.conf.broker_transport_options = (
            {"socket_timeout": 5, "socket_connect_timeout": 2} if on_redis else {"confirm_publish": True}
        )
        self.results = redis.Redis.from_url(addresses.result_backend_url, socket_timeout=5)
        with self.app.connection_for_write() as connection:
            self._away = (
                OperationalError,
                redis.exceptions.OutOfMemoryError,
                *connection.recoverable_connection_errors,
            )

    def start(self) -> None:
        """Start sending."""
        for thread in self._threads:
            thread.start()

    def stop_sending(self) -> None:
        """Send no new commands; still collect answers, and repeat commands without one."""
        self._stop.set()
        self._threads[0].join()

    def close(self) -> None:
        """Stop the threads."""
        self._stop.set()
        self._closed = True
        for thread in self._threads:
            thread.join()
        self.app.close()
        self.results.close()

    @property
    def sent(self) -> list[Sent]:
        """Return all commands of all messages."""
        with self._lock:
            return [one for message in self.messages for one in message.commands]

    @property
    def open(self) -> list[Message]:
        """Return the messages whose senders wait for an answer."""
        return [one for one in self._unanswered() if not one.replaced]

    @property
    def on_broker(self) -> list[Message]:
        """Return the confirmed messages without an answer."""
        return [one for one in self.open if one.on_broker]

    def _unanswered(self) -> list[Message]:
        with self._lock:
            return [one for one in self.messages if one.answered_at is None]

    def answered_since(self, moment: float) -> int:
        """Return how many messages sent after this moment have been answered."""
        with self._lock:
            return sum(one.first_sent_at >= moment and one.answered_at is not None for one in self.messages)

    def changed_answers(self) -> list[tuple[Sent, Any]]:
        """Return results in Redis that differ from the sender's first answer."""
        with self._lock:
            told = [message for message in self.messages if message.answered_at is not None]
        stored = self._stored(told)
        answered = [message for message in told if message.id in stored]
        return [change for message in answered for change in message.changes(*stored[message.id])]

    def order(self, task: str, **fields: Any) -> Sent:
        """Send one command now, as part of the traffic."""
        one = Sent(task, fields, self._new_key())
        self._send(self._message([one]))
        return one

    def burst(self, count: int) -> None:
        """Send this many commands as fast as possible, in addition to the steady load."""
        self._burst = count

    # Sending

    def _send_all(self) -> None:
        stream = iter(self._orders)
        while not self._stop.wait(0 if self._burst > 0 else self._rng.expovariate(self.rate)):
            self._burst -= 1
            many = self._rng.random() < MANY
            self._send_new([next(stream) for _ in range(self._rng.randint(2, 6) if many else 1)], many)
            if self._rng.random() < RUSH:
                for order in self._orders.rush():
                    self._send_new([order], many=False)

    def _send_new(self, orders: list[tuple[str, dict[str, Any]]], many: bool) -> None:
        commands = [Sent(*order, self._new_key()) for order in orders]
        for one in commands:
            one.impatient = self._rng.random() < IMPATIENT
        header = self._new_key() if many else None
        expires_s = self._rng.choice(EXPIRES_S) if self._rng.random() < EXPIRES and self.may_expire else None
        self._send(self._message(commands, many=many, given_key=header, expires_s=expires_s))
        if self._rng.random() < TWICE:
            self._send(self._message([self._repeat(commands[0])]))
        if self._rng.random() < OTHER_AT_ONCE:
            self._send(self._message([self._repeat(commands[-1], other=True)]))

    def _new_key(self) -> str | None:
        return None if self._rng.random() < PLAIN else f"key-{self._rng.getrandbits(64):x}"

    def _message(self, commands: list[Sent], **options: Any) -> Message:
        if not options.get("many"):
            options["given_key"] = commands[0].given_key
        with self._lock:
            self.messages.append(Message(f"{self.prefix}-{len(self.messages)}", commands, **options))
            return self.messages[-1]

    def _repeat(self, one: Sent, other: bool = False, after: Sent | None = None) -> Sent:
        task, fields = another(one.task, one.fields) if other else (one.task, one.fields)
        return Sent(task, fields, one.key, after)

    def _send(self, message: Message) -> None:
        message.in_hand = True
        message.sent_at = time.monotonic()
        message.times += 1
        first = message.commands[0]
        listed = [
            [f"allocation.{one.task}", one.fields, *([one.given_key] if one.given_key else [])]
            for one in message.commands
        ]
        try:
            self.app.send_task(
                "allocation.many" if message.many else f"allocation.{first.task}",
                (listed,) if message.many else (),
                {} if message.many else first.fields,
                task_id=message.id,
                headers={"idempotency_key": message.given_key} if message.given_key else {},
                expires=message.expires_s,
                queue=QUEUE,
                declare=(),
                retry=self.publish_retry,
                confirm_timeout=5.0,
            )
            message.on_broker = True
        except self._away:
            message.on_broker = False
        finally:
            message.in_hand = False

    # Answers

    def _collect(self) -> None:
        while not self._closed:
            with suppress(redis.RedisError):
                self._look()
            time.sleep(0.02)  # between two polls of all open messages

    def _repeat_all(self) -> None:
        while not self._closed:
            self._send_what_is_due()
            time.sleep(0.02)

    def _stored(self, messages: Iterable[Message]) -> dict[str, tuple[str, Any]]:
        """Return status and result of answered messages."""
        ids = [one.id for one in messages]
        raw = self.results.mget([RESULT_KEY + name for name in ids]) if ids else []
        metas = {name: json.loads(answer) for name, answer in zip(ids, raw, strict=True) if answer}
        return {
            name: (meta["status"], meta["result"]) for name, meta in metas.items() if meta["status"] in FINAL
        }

    def _look(self) -> None:
        waiting = self._unanswered()
        stored = self._stored(waiting)
        for message in waiting:
            if message.id in stored:
                message.take(*stored[message.id])
                self._go_on_from(message)
            elif message.times and not message.replaced and not message.in_hand:
                self._perhaps_again(message)

    def _go_on_from(self, message: Message) -> None:
        """Repeat failed commands, and sometimes successful ones."""
        for one in message.commands:
            if one.error in TRY_AGAIN:
                self._send_later(self._repeat(one), BACK_OFF_S)
            elif not self._stop.is_set() and "qty" in one.fields:  # not what kills workers or handlers
                share = REPEATED.get(one.error, 0)
                if self._dice.random() < share:
                    self._send_later(self._repeat(one, after=one))
                if self._dice.random() < share / 3:
                    self._send_later(self._repeat(one, other=True, after=one))

    def _send_later(self, one: Sent, delay_s: float = 0.0) -> None:
        self._put_off(self._message([one]), delay_s)

    def _put_off(self, message: Message, delay_s: float = 0.0) -> None:
        message.in_hand = True
        with self._lock:
            self._later.append((time.monotonic() + delay_s, message))

    def _send_what_is_due(self) -> None:
        now = time.monotonic()
        with self._lock:
            due = [message for at, message in self._later if at <= now]
            self._later = [(at, message) for at, message in self._later if at > now]
        for message in due:
            self._send(message)

    def _perhaps_again(self, message: Message) -> None:
        waited = time.monotonic() - message.sent_at
        impatient = message.commands[0].impatient and not self._stop.is_set()
        if not message.on_broker and waited > 0.5:
            self._again(message)
        elif message.on_broker and waited > self.patience_s:
            message.timed_out += 1
            self._again(message)
        elif impatient and waited > INSTANT_S:
            message.commands[0].impatient = False
            self._put_off(self._message([self._repeat(message.commands[0])]))

    def _again(self, message: Message) -> None:
        """Send the same commands in a new message; a plain sender repeats them with the same id."""
        if any(one.key == one.id for one in message.commands):
            self._put_off(message)
            return
        message.replaced = True
        commands = [Sent(one.task, one.fields, one.given_key) for one in message.commands]
        self._put_off(self._message(commands, many=message.many, given_key=message.given_key))
