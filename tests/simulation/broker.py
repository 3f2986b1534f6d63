"""A broker in memory: it redelivers what was not acknowledged, repeats, reorders, and forgets if it may."""

from __future__ import annotations

import base64
import copy
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from kombu.transport import virtual

from messaging.brokers import topology
from tests.simulation.clock import Clock
from tests.simulation.scheduler import Fault, current, step

FAULTS = (Fault.CRASH_BEFORE, Fault.CRASH_AFTER, Fault.ERROR_BEFORE, Fault.ERROR_AFTER)


@dataclass
class Message:
    """One message, as a worker's request reads it."""

    queue: str
    headers: dict[str, Any]
    body: str
    properties: dict[str, Any]
    redelivered: bool = False
    due: float = 0.0  # Unix time
    holder: str | None = None
    acknowledged: bool = False
    content_type: str = "application/json"
    content_encoding: str = "utf-8"
    channel: Any = None  # what its transport says of it

    @property
    def id(self) -> str:
        """Return the task id."""
        return str(self.headers["id"])

    @property
    def task(self) -> str:
        """Return the task's name without the project's."""
        return str(self.headers["task"]).rpartition(".")[2]

    @property
    def payload(self) -> Any:
        """Return arguments and embedded values."""
        return json.loads(self.body)

    @property
    def delivery_info(self) -> dict[str, Any]:
        """Return what Celery reads of the delivery."""
        return {
            "exchange": "",
            "routing_key": self.queue,
            "queue": self.queue,
            "redelivered": self.redelivered,
        }


@dataclass
class Broker:
    """Queues, what is held, and what was announced to other apps."""

    clock: Clock
    waiting: list[Message] = field(default_factory=list)
    held: list[Message] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)  # housekeeping's jobs
    announced: list[dict[str, Any]] = field(default_factory=list)
    accepted: set[str] = field(default_factory=set)  # ids of messages that a publisher was told are safe
    on_publish: Callable[[Message], object] = lambda _message: None

    def put(self, queue: str, raw: dict[str, Any]) -> None:
        """Take a message."""
        properties = raw["properties"]
        body = (
            base64.b64decode(raw["body"]).decode()
            if properties.get("body_encoding") == "base64"
            else raw["body"]
        )
        headers = copy.deepcopy(raw.get("headers") or {})
        eta = headers.get("eta")
        due = datetime.fromisoformat(eta).timestamp() if eta else 0.0
        headers["eta"] = None  # the broker has it wait
        if queue.endswith(".housekeeping"):
            self.asked.append(str(headers["task"]).rpartition(".")[2])
            return
        message = Message(queue, headers, body, properties, due=due)
        self.waiting.append(message)
        self.on_publish(message)

    def due(self, queues: tuple[str, ...]) -> list[Message]:
        """Return the messages that may be taken now."""
        return [one for one in self.waiting if one.queue in queues and one.due <= self.clock.at]

    def take(self, message: Message, worker: str) -> Message:
        """Give a message to a worker, which holds it until it is settled."""
        self.waiting.remove(message)
        taken = copy.deepcopy(message)
        taken.holder = worker
        self.held.append(taken)
        return taken

    def settle(self, message: Message) -> None:
        """Forget a message that its holder acknowledged, unless it was given to another one."""
        self.held = [one for one in self.held if one is not message]

    def give_back(self, message: Message) -> None:
        """Redeliver a message that is held."""
        if any(one is message for one in self.held):
            self.settle(message)
            back = copy.deepcopy(message)
            back.redelivered, back.holder = True, None
            self.waiting.append(back)

    def forget(self) -> None:
        """Lose every message, as FLUSHALL does."""
        for messages in (self.waiting, self.held, self.asked):
            messages.clear()

    def lost(self, worker: str) -> None:
        """Redeliver all that a dead worker held."""
        for message in [one for one in self.held if one.holder == worker]:
            self.give_back(message)


#: The broker of the schedule that runs.
current_broker: list[Broker] = []


class Channel(virtual.Channel):
    """Puts messages into the simulated broker."""

    do_restore = False
    supports_fanout = False

    def basic_publish(self, message: Any, exchange: str, routing_key: str, **_kwargs: Any) -> None:
        """Publish; an exchange other than the default one is that of events."""
        self._inplace_augment_message(message, exchange, routing_key)
        broker = current_broker[-1]
        events = exchange == topology.events_exchange("allocation").name

        def do() -> None:
            if events:
                body = message["body"]
                encoded = message["properties"].get("body_encoding") == "base64"
                broker.announced.append(json.loads(base64.b64decode(body) if encoded else body))
            else:
                broker.put(routing_key, message)

        headers = message.get("headers") or {}
        name = (
            f"publishes {routing_key}"
            if events
            else f"sends {headers.get('task')} {str(headers.get('id'))[-12:]}"
        )
        step(name, do, *FAULTS)

    def _size(self, queue: str) -> int:
        return len(current_broker[-1].asked) if queue.endswith(".housekeeping") else 0

    def _has_queue(self, _queue: str, **_kwargs: Any) -> bool:
        return True

    def _new_queue(self, _queue: str, **_kwargs: Any) -> None: ...

    def _put(self, queue: str, message: Any, **_kwargs: Any) -> None:
        current_broker[-1].put(queue, message)


class Transport(virtual.Transport):
    """kombu's transport to the simulated broker."""

    Channel = Channel
    driver_type = driver_name = "simulated"
    global_state = virtual.BrokerState()

    def __init__(self, client: Any, **kwargs: Any) -> None:
        super().__init__(client, **kwargs)
        self.state = self.global_state

    def driver_version(self) -> str:
        """Return none."""
        return "N/A"


def process_name() -> str:
    """Return who runs."""
    process = current()
    return process.name if process else "·"
