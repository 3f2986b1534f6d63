"""Connections whose every command is a step, and the clock that the transport's scripts read."""

from __future__ import annotations

import re
import select
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from random import Random
from typing import Any
from unittest.mock import patch
from uuid import UUID

import redis
import redis.retry
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from reliable_celery.redis import adoption, channel, fetch, later, leases, news, rota, settling, strays, trips
from reliable_celery.redis.channel import Channel
from reliable_celery.redis.settling import QoS
from reliable_celery.redis.transport import Transport
from tests.simulation.clock import Clock
from tests.simulation.mistakes import notice
from tests.simulation.scheduler import Fault, current, step

FAULTS = (Fault.CRASH_BEFORE, Fault.CRASH_AFTER, Fault.ERROR_BEFORE, Fault.ERROR_AFTER)

#: The list that holds the seconds and microseconds which `TIME` would return.
CLOCK = "sim.clock"

#: Where the scripts are, by the names under which they are called.
SCRIPTS = (
    (fetch, "FETCH"),
    (trips, "FETCH"),
    (channel, "FETCH"),
    (leases, "TEND"),
    (leases, "OVERDUE"),
    (leases, "DISOWN"),
    (later, "PUT_OFF"),
    (later, "GIVE_BACK_DUE"),
    (adoption, "ADOPT"),
    (rota, "LEAVE"),
)


class Server:
    """A look at the real Redis, and its clock."""

    def __init__(self, url: str, clock: Clock) -> None:
        self.clock = clock
        self.client = redis.Redis.from_url(url)
        where = self.client.connection_pool.connection_kwargs
        self.socket = socket.create_connection((where["host"], where["port"]))

    def close(self) -> None:
        """Close the connections."""
        self.client.close()
        self.socket.close()

    def empty(self) -> None:
        """Delete everything, the scripts too: who calls one by its name has to send it first, each time."""
        self.client.flushdb()
        self.client.script_flush()
        self.set_clock()

    def set_clock(self) -> None:
        """Have the scripts read the schedule's time; afterwards all that Redis sent before has arrived."""
        second, rest = divmod(self.clock.at, 1)
        self.socket.sendall(
            f"DEL {CLOCK}\r\nRPUSH {CLOCK} {int(second)} {int(rest * 1_000_000)}\r\n".encode()
        )
        answers = b""
        while answers.count(b"\r\n") < 2:
            answers += self.socket.recv(100)


#: The server of the schedule that runs.
current_server: list[Server] = []


class StepConnection(redis.Connection):
    """A connection of which every command is a step; the first ones, which redis-py sends itself, are not."""

    greets = False

    def connect_check_health(self, *args: Any, **kwargs: Any) -> None:
        """Connect, in one step."""
        if self._sock is not None:
            return
        process = current()
        if process is not None:
            if process.dead:
                process.pause()
            process.connections.append(self)
        self.greets = True
        try:
            super().connect_check_health(*args, **kwargs)
        finally:
            self.greets = False

    def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        """Send a command when it is its turn; the answer is there when this returns."""
        if self.greets or current() is None:
            super().send_packed_command(command, check_health)
            return

        def send() -> None:
            server = current_server[-1]
            server.set_clock()
            super(StepConnection, self).send_packed_command(command, check_health)
            select.select([self._sock], [], [], 5)
            server.set_clock()

        step(
            shown(command),
            send,
            *FAULTS,
            error=lambda: RedisConnectionError("Connection reset by peer"),
            lose=self.disconnect,
        )

    def read_response(self, *args: Any, **kwargs: Any) -> Any:
        """Read a reply; an error of a script is a mistake in it, whatever the transport makes of that."""
        try:
            return super().read_response(*args, **kwargs)
        except ResponseError as error:
            if not self.greets:
                notice(error)
            raise


class StepQoS(QoS):
    """The transport's, which does nothing when this whole process ends."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._on_collect.cancel()


class StepChannel(Channel):
    """The transport's channel on such connections."""

    QoS = StepQoS
    connection_class = StepConnection


class StepTransport(Transport):
    """The transport with these channels."""

    Channel = StepChannel


def shown(command: Any) -> str:
    """Return the words of a command that fit into a line of a story."""
    packed = b"".join(command if isinstance(command, list) else [command]).decode(errors="replace")
    words = re.findall(r"\$\d+\r\n(.*?)\r\n(?=[$*]|\Z)", packed, re.DOTALL)
    if words[0] in ("EVAL", "EVALSHA"):
        words[:2] = [next((name for name, start in NAMES.items() if start in words[1]), "FETCH")]
    return " ".join(word.replace("\n", " ")[:34] for word in words)[:110]


#: What a script has and no other.
NAMES = {
    "TEND": "ZADD', KEYS[2], 'XX'",
    "OVERDUE": "overdue",
    "DISOWN": "nobody.",
    "PUT_OFF": "local wait =",
    "GIVE_BACK_DUE": "'^(%S+) (.*)$'",
    "MOVE": "HEXISTS",
    "READ": "cjson",
    "LEAVE": "local watched =",
}


@contextmanager
def in_place(server: Server, clock: Clock, seed: int) -> Iterator[None]:
    """Have the transport read the simulated clocks, and make the same tags for the same seed."""
    ids = Random(seed)
    with ExitStack() as stack:
        for module, name in SCRIPTS:
            sql = getattr(module, name)
            timed = sql.replace("redis.call('TIME')", f"redis.call('LRANGE', '{CLOCK}', 0, 1)")
            stack.enter_context(patch.object(module, name, timed))
        for module in (trips, channel):
            sha = fetch.hashlib.sha1(trips.FETCH.encode(), usedforsecurity=False).hexdigest()
            stack.enter_context(patch.object(module, "FETCH_SHA", sha))
        for module in (adoption, channel, later, leases, news, rota, settling, strays, trips):
            stack.enter_context(patch.object(module, "monotonic", clock.monotonic))
        stack.enter_context(patch.object(leases, "uuid4", lambda: UUID(int=ids.getrandbits(128), version=4)))
        stack.enter_context(patch.object(redis.retry, "sleep", clock.sleep))
        current_server.append(server)
        try:
            yield
        finally:
            current_server.pop()
