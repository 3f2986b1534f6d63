"""Bugs put into the Redis transport on purpose."""

# mypy: disable-error-code="attr-defined, no-untyped-call"

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from reliable_celery.redis import channel, fetch, later, leases, trips
from reliable_celery.redis.fetch import ending_of
from reliable_celery.redis.leases import LeasingChannel
from reliable_celery.redis.restore import Pushes
from reliable_celery.redis.trips import FetchingChannel
from tests.simulation.planting import put
from tests.simulation.redis.world import RedisWorld

MUTATIONS: dict[str, Callable[[RedisWorld], ExitStack]] = {}


def mutation(words: str) -> Callable[[Callable[[ExitStack], None]], None]:
    """Register a bug under the words that say what is wrong."""

    def register(plant: Callable[[ExitStack], None]) -> None:
        def planted(_world: RedisWorld) -> ExitStack:
            stack = ExitStack()
            plant(stack)
            return stack

        MUTATIONS[words] = planted

    return register


def script(stack: ExitStack, module: Any, name: str, part: str, instead: str = "") -> None:
    """Replace a part of a script."""
    text = getattr(module, name)
    assert part in text, f"{part!r} is not in {name}"
    put(stack, module, name, text.replace(part, instead))


def fetching(stack: ExitStack, part: str, instead: str = "") -> None:
    """Replace a part of the script that fetches, wherever it is named."""
    for module in (fetch, trips, channel):
        script(stack, module, "FETCH", part, instead)


REGISTERS = "redis.call('HSETNX', KEYS[1], tag, '[' .. item .. ending) == 0"


@mutation("messages are popped in one step and registered in the next")
def _(stack: ExitStack) -> None:
    fetching(stack, REGISTERS, "false")
    fetching(stack, "redis.call('ZADD', KEYS[2], now, tag)")
    read = FetchingChannel._read_batch

    def read_and_register(self: Any, connection: Any) -> None:
        before = len(self.arrived)
        read(self, connection)
        for queue, tag, item in list(self.arrived)[before:]:
            with self.conn_or_acquire() as client:
                client.hset(self.unacked_key, tag, b"[" + item + ending_of(queue).encode())
                client.zadd(self.unacked_index_key, {tag: 2_000_000_000})

    put(stack, FetchingChannel, "_read_batch", read_and_register)


@mutation("messages are registered without a time")
def _(stack: ExitStack) -> None:
    fetching(stack, "redis.call('ZADD', KEYS[2], now, tag)")


@mutation("a lease is taken late")
def _(stack: ExitStack) -> None:
    fetching(stack, "redis.call('ZADD', KEYS[3], now + ARGV[4], ARGV[3])")
    script(stack, leases, "TEND", "redis.call('ZADD', KEYS[1], now + ARGV[2], ARGV[1])")


@mutation("overdue messages are taken from workers with a lease")
def _(stack: ExitStack) -> None:
    script(stack, leases, "OVERDUE", "if not lease or tonumber(lease) < last then", "do")


@mutation("a lease counts as expired while it lasts")
def _(stack: ExitStack) -> None:
    script(stack, leases, "TEND", "'(' .. now)", "'(' .. (now + ARGV[2]))")


@mutation("a worker without a lease does not register its messages anew")
def _(stack: ExitStack) -> None:
    put(stack, LeasingChannel, "held_tags", lambda _self: [])
    put(stack, FetchingChannel, "held_tags", lambda _self: [])


@mutation("a message is requeued in two steps")
def _(stack: ExitStack) -> None:
    def move(self: Pushes, client: Any, unacked_key: str, index_key: str, tag: Any) -> None:
        client.zrem(index_key, tag)
        if client.hdel(unacked_key, tag):
            for key, message in zip(self.keys, self.commands[1::2], strict=True):
                client.rpush(key, message)

    put(stack, Pushes, "move", move)


@mutation("a due message is requeued and stays registered")
def _(stack: ExitStack) -> None:
    script(stack, later, "GIVE_BACK_DUE", "redis.call('HDEL', KEYS[1], tag)")


@mutation("a message is taken for due a second before")
def _(stack: ExitStack) -> None:
    script(stack, later, "PUT_OFF", "if wait <= 0 then", "if wait <= 1 then")


@mutation("a message that waits is not looked for")
def _(stack: ExitStack) -> None:
    script(stack, later, "GIVE_BACK_DUE", "'-inf', now,", "'-inf', 0,")
