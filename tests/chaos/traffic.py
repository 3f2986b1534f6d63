"""Another app that sends orders all the time, remembers each, and sends again what it has no answer to."""

# mypy: disable-error-code="no-untyped-call"
# kombu and Celery are untyped in parts.

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import redis
from celery import Celery
from kombu.exceptions import OperationalError

from local.addresses import Addresses

QUEUE = "allocation.commands"
RESULT_KEY = "celery-task-meta-"
SKUS = 6  # few, so that orders meet at the same product
#: Errors that ask the sender to send the same command again.
TRY_AGAIN = frozenset({"Unavailable"})


@dataclass
class Sent:
    """One command and what became of it."""

    id: str
    task: str
    fields: dict[str, Any]
    first_sent_at: float  # monotonic seconds
    sent_at: float = 0.0  # of the last sending
    answered_at: float | None = None
    times: int = 0
    timed_out: int = 0  # times sent again for want of an answer
    status: str = ""
    result: Any = None
    on_broker: bool = False

    @property
    def error(self) -> str:
        """Return the error's class name, empty where there was none."""
        return "" if self.status == "SUCCESS" else str(self.result["exc_type"])


@dataclass
class Traffic:
    """Sends `rate` commands a second; after `patience_s` without an answer it sends again."""

    addresses: Addresses
    rng: random.Random
    prefix: str
    rate: float = 25.0
    patience_s: float = 60.0
    sent: dict[str, Sent] = field(default_factory=dict)
    refused_by_broker: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        """Connect lazily; nothing is sent yet."""
        self.app = Celery("shop", broker=self.addresses.broker_url, set_as_current=False)
        self.app.conf.task_publish_retry = False
        on_redis = self.addresses.broker_url.startswith("redis")
        self.app.conf.broker_transport_options = (
            {"socket_timeout": 5, "socket_connect_timeout": 2} if on_redis else {"confirm_publish": True}
        )
        self.results = redis.Redis.from_url(self.addresses.result_backend_url, socket_timeout=5)
        with self.app.connection_for_write() as connection:
            self._away = connection.recoverable_connection_errors
        self._commands = self._make_commands()
        self._threads = [threading.Thread(target=run, daemon=True) for run in (self._send_all, self._collect)]

    def start(self) -> None:
        """Begin to send."""
        for thread in self._threads:
            thread.start()

    def stop_sending(self) -> None:
        """Send no new command; answers are still collected, and what has none is sent again."""
        self._stop.set()
        self._threads[0].join()

    def close(self) -> None:
        """End the threads."""
        self._stop.set()
        self._closed = True
        for thread in self._threads:
            thread.join()
        self.app.close()
        self.results.close()

    _closed = False
    _burst = 0

    @property
    def open(self) -> list[Sent]:
        """Return the commands without an answer."""
        with self._lock:
            return [one for one in self.sent.values() if one.answered_at is None]

    def order(self, task: str, **fields: Any) -> Sent:
        """Send one command now, as part of the traffic."""
        with self._lock:
            one = Sent(f"{self.prefix}-{len(self.sent)}", task, fields, time.monotonic())
            self.sent[one.id] = one
        self._send(one)
        return one

    def _make_commands(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield what a shop orders: mostly lines, some stock, some corrections, some nonsense."""
        batches: list[str] = []
        orders: list[dict[str, Any]] = []
        number = 0
        while True:
            number += 1
            sku = f"{self.prefix}-sku{min(self.rng.randrange(SKUS), self.rng.randrange(SKUS))}"
            roll = self.rng.random()
            if roll < 0.12 or number <= SKUS:
                sku = f"{self.prefix}-sku{number - 1}" if number <= SKUS else sku
                batches.append(f"{self.prefix}-b{number}")
                eta = self.rng.choice([None, "2026-01-31", "2026-02-28"])
                fields = {"ref": batches[-1], "sku": sku, "qty": self.rng.randint(5, 40), "eta": eta}
                yield "create_batch", fields
            elif roll < 0.20:
                yield (
                    "change_batch_quantity",
                    {"ref": self.rng.choice(batches), "qty": self.rng.randint(0, 40)},
                )
            elif roll < 0.23:
                yield "allocate", {"orderid": f"{self.prefix}-o{number}", "sku": sku, "qty": 0}
            elif roll < 0.26 and orders:
                yield "allocate", self.rng.choice(orders)
            else:
                line = {"orderid": f"{self.prefix}-o{number}", "sku": sku, "qty": self.rng.randint(1, 6)}
                orders.append(line)
                yield "allocate", line

    def burst(self, count: int) -> None:
        """Have this many commands sent as fast as can be, beside the steady ones."""
        self._burst = count

    def _send_all(self) -> None:
        while not self._stop.wait(0 if self._burst > 0 else self.rng.expovariate(self.rate)):
            self._burst -= 1
            task, fields = next(self._commands)
            self.order(task, **fields)

    def _send(self, one: Sent) -> None:
        one.sent_at = time.monotonic()
        one.times += 1
        try:
            self.app.send_task(
                f"allocation.{one.task}",
                kwargs=one.fields,
                task_id=one.id,
                queue=QUEUE,
                declare=(),
                retry=False,
                confirm_timeout=5.0,
            )
            one.on_broker = True
        except (OperationalError, *self._away):
            self.refused_by_broker += 1
            one.on_broker = False

    def _collect(self) -> None:
        while not self._closed:
            with suppress(redis.RedisError):
                self._look()
            time.sleep(0.02)  # between two looks at everything that is open

    def _look(self) -> None:
        waiting = self.open
        if not waiting:
            return
        answers = self.results.mget([RESULT_KEY + one.id for one in waiting])
        for one, answer in zip(waiting, answers, strict=True):
            meta = json.loads(answer) if answer else {}
            if meta.get("status") in {"SUCCESS", "FAILURE", "REVOKED"}:
                self._take(one, meta)
            else:
                self._perhaps_again(one)

    def _take(self, one: Sent, meta: dict[str, Any]) -> None:
        one.status, one.result = meta["status"], meta["result"]
        if one.error in TRY_AGAIN:
            self.results.delete(RESULT_KEY + one.id)
            self._send(one)
        else:
            one.answered_at = time.monotonic()

    def _perhaps_again(self, one: Sent) -> None:
        waited = time.monotonic() - one.sent_at
        if not one.on_broker and waited > 0.5:
            self._send(one)
        elif one.on_broker and waited > self.patience_s:
            one.timed_out += 1
            self._send(one)
