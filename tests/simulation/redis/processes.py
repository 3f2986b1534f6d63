"""What senders and workers do with the transport, as Celery's event loop does it, one command at a time."""

from __future__ import annotations

import contextlib
import logging
import select
from collections.abc import Callable
from queue import Empty
from types import SimpleNamespace
from typing import Any

from kombu import Connection
from redis.exceptions import ConnectionError as RedisConnectionError

from tests.simulation.redis.wire import StepTransport
from tests.simulation.scheduler import Fault, Scheduler, current, step

logger = logging.getLogger(__name__)

QUEUE = "work"
LEASE_S, VISIBILITY_S = 4, 12

#: What Celery takes for a lost connection. Any other error ends a worker.
LOST: tuple[type[Exception], ...] = StepTransport.connection_errors


def connection_to(url: str) -> Connection:
    """Return a connection with short times."""
    options = {"lease_s": LEASE_S, "visibility_timeout": VISIBILITY_S, "unacked_restore_throttle": 1}
    return Connection(url, transport=StepTransport, transport_options=options)


class Loop:
    """The event loop of a worker: its timers, and what it does in the next round."""

    def __init__(self, clock: Any) -> None:
        self.clock = clock
        self.timers: list[tuple[float, int, Callable[[], object]]] = []
        self.count = 0
        self.soon: list[Callable[[], object]] = []

    def call_soon(self, do: Callable[[], object]) -> None:
        """Do it in the next round."""
        self.soon.append(do)

    def run_soon(self) -> None:
        """Do what was asked for in the last round."""
        soon, self.soon = self.soon, []
        for do in soon:
            do()

    def reset(self) -> None:
        """Forget the timers of a lost connection, and do what was asked for, as Celery does.

        What that asks for in turn is done in the first round with the next connection.
        """
        self.timers.clear()
        self.run_soon()

    def call_later(self, seconds: float, do: Callable[[], object]) -> None:
        """Do it later."""
        self.count += 1
        self.timers.append((self.clock.at + seconds, self.count, do))

    def next(self) -> float:
        """Return when the next timer is due."""
        return min(self.timers)[0] if self.timers else float("inf")

    def run_due(self) -> bool:
        """Run the timer that is due, if any."""
        if self.next() > self.clock.at:
            return False
        first = min(self.timers, key=lambda timer: timer[:2])
        self.timers.remove(first)
        first[2]()
        return True


class Sender:
    """Sends messages, each again under another id when it does not know what became of it."""

    def __init__(self, url: str, scheduler: Scheduler, books: Any, orders: list[float]) -> None:
        self.url, self.scheduler, self.books, self.orders = url, scheduler, books, orders

    def run(self) -> None:
        """Send one message after the other."""
        connection = connection_to(self.url)
        for number, delay in enumerate(self.orders):
            for attempt in range(4):
                name = f"{self.books.process_name()}.{number}.{attempt}"
                process = current()
                faults = process.faults if process else 0
                due = self.scheduler.clock.at + delay if delay else 0.0
                self.books.sent(name, due)
                try:
                    headers = {"id": name, "due": due}
                    connection.Producer().publish({}, exchange="", routing_key=QUEUE, headers=headers)
                except LOST as error:
                    self.scheduler.tell(f"cannot send {name}: {type(error).__name__}")
                    self.books.unsure.add(name)
                    continue
                if process and process.faults > faults:  # redis-py has sent it again
                    self.books.unsure.add(name)
                self.books.accepted.add(name)
                break
        connection.release()


class Worker:
    """A consumer with a few messages at once, which are handled beside its event loop."""

    def __init__(self, url: str, scheduler: Scheduler, books: Any, plan: Any, name: str) -> None:
        self.url, self.scheduler, self.books, self.plan, self.name = url, scheduler, books, plan, name
        self.holds: dict[str, str] = {}  # tags by message
        self.prefix = ""
        self.channel: Any = None
        self.busy_until = 0.0
        self.turned_at = 0.0  # set when it begins to consume
        self.loop = Loop(scheduler.clock)
        self.ends: dict[str, tuple[float, Callable[[], object]]] = {}  # of what it holds: when, and how

    def run(self) -> None:
        """Consume, and connect again after an error, for ever."""
        while True:
            connection = connection_to(self.url)
            try:
                self.consume(connection)
            except LOST as error:
                self.scheduler.tell(f"lost its connection: {error}"[:110])
                self.books.troubles += 1
                with contextlib.suppress(*LOST):
                    self.loop.reset()
                connection.transport.holds_leases = False  # as the consumer does
            else:
                self.loop = Loop(self.scheduler.clock)  # the next process has no task of this one
            self.holds.clear()  # Celery cancels what runs
            self.busy_until = 0.0
            self.prefix = ""
            try:
                connection.collect(0.1)
            except LOST:
                self.scheduler.tell("could not close its connection")
            self.scheduler.sleep(0.5)

    def consume(self, connection: Connection) -> None:
        """Turn the event loop until the worker is told to stop."""
        transport: Any = connection.transport
        transport.holds_leases = self.plan.leases
        cycle, loop = transport.cycle, self.loop
        cycle.loop = loop
        channel: Any = connection.channel()
        self.channel, self.prefix = channel, channel.tag_prefix
        cycle.on_poll_init(SimpleNamespace(register=lambda *_: None, unregister=lambda *_: None))
        channel.basic_qos(0, self.plan.prefetch, False)
        channel.basic_consume(QUEUE, False, lambda message: self.receive(channel, loop, message), "consumer")
        self.sweep(cycle, loop)
        self.turned_at = loop.clock.at
        while not self.scheduler.choices.pick((False, True), 1 - self.plan.stops) or self.scheduler.calm:
            self.turn(cycle, loop)
        self.scheduler.tell("stops")
        if self.scheduler.choices.pick((True, False), 0.75):
            self.finish(channel)
        connection.release()

    def finish(self, channel: Any) -> None:
        """Come to the end of what has begun, without an event loop, as a worker does that stops."""
        ends = sorted((self.ends[name] for name in self.holds), key=lambda end: end[0])
        # No lease protects a task for longer than the visibility timeout any more.
        if ends and ends[-1][0] - self.loop.clock.at > VISIBILITY_S * 0.8:
            return
        self.scheduler.tell("takes no more messages")
        channel.basic_cancel("consumer")
        for at, handle in ends:
            self.scheduler.sleep(max(0.0, at - self.loop.clock.at))
            handle()

    def sweep(self, cycle: Any, loop: Loop) -> None:
        """Look for messages that nobody acknowledged, again and again."""
        cycle.maybe_restore_messages()
        loop.call_later(3.0, lambda: self.sweep(cycle, loop))

    def turn(self, cycle: Any, loop: Loop) -> None:
        """Turn the event loop once; after a long while between two it counts as having stood still."""
        if loop.clock.at - self.turned_at > LEASE_S / 2:
            self.books.troubles += 1
        self.turned_at = loop.clock.at
        loop.run_soon()
        cycle.on_poll_start()
        ready = self._readable(cycle)
        if ready:
            fileno = ready[0]
            channel, _ = cycle._fd_to_chan[fileno]
            lost = channel.client.connection
            step(
                "reads what Redis sent",
                lambda: None,
                Fault.ERROR_BEFORE,
                Fault.CRASH_BEFORE,
                error=lambda: RedisConnectionError("Connection closed by server"),
                lose=lost.disconnect,
                changes=False,
            )
            with contextlib.suppress(Empty):
                cycle.on_readable(fileno)
            return
        if loop.run_due():
            return
        if self.scheduler.choices.pick((False, True), 1 - self.plan.freezes) and not self.scheduler.calm:
            self.scheduler.tell("stands still")
            self.books.troubles += 1
            self.scheduler.sleep(LEASE_S * 2)
            return
        self.scheduler.wait_until(
            lambda: bool(self._readable(cycle)), "waits for Redis", min(loop.next() - loop.clock.at, 1.0)
        )

    def _readable(self, cycle: Any) -> list[int]:
        sockets = {sock.fileno(): sock for sock in cycle._chan_to_sock.values() if sock.fileno() >= 0}
        found = select.select(list(sockets), [], [], 0)[0] if sockets else []
        return [fileno for fileno in found if fileno in cycle._fd_to_chan]

    def receive(self, channel: Any, loop: Loop, message: Any) -> None:
        """Take a message: it waits in Redis until it is due, or is handled after a while."""
        name, due = message.headers["id"], message.headers["due"]
        self.books.received(self, name)
        self.scheduler.tell(f"receives {name}")
        if due and channel.put_off(message, due):
            self.scheduler.tell(f"puts off {name}")
            return
        self.books.began(name)
        self.holds[name] = message.delivery_tag
        # Without a lease a task may not take longer than the visibility timeout.
        longest = VISIBILITY_S * 1.3 if self.plan.leases else VISIBILITY_S * 0.8
        seconds = self.scheduler.choices.pick((0.0, 0.3, 3.0, longest), 0.4)
        if not self.plan.leases:  # the solo pool has one task at a time
            self.busy_until = max(self.busy_until, loop.clock.at) + seconds
            seconds = self.busy_until - loop.clock.at
        self.ends[name] = loop.clock.at + seconds, lambda: self.handle(name, message)
        loop.call_later(seconds, lambda: self.handle(name, message))

    def handle(self, name: str, message: Any) -> None:
        """Come to the end of a task, and settle its message."""
        if name not in self.holds:
            return
        again = self.scheduler.choices.pick((False, True), 1 - self.plan.requeues) and not self.scheduler.calm
        self.scheduler.tell(f"{'gives back' if again else 'has handled'} {name}")
        if again:
            del self.holds[name]
            message.reject_log_error(logger, LOST, requeue=True)
            return
        self.books.handled(name)
        del self.holds[name]
        message.ack()
