"""This backend on Redis and on RabbitMQ: commands per second, and round trips of single commands."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from statistics import median

from celery import Celery
from kombu import Connection

from benchmarks import stock
from benchmarks.crew import Crew, crews
from benchmarks.figure import Figure, per_second, ratios
from benchmarks.peers import ours
from benchmarks.peers.peer import Line, Peer, redis_url
from benchmarks.scale import Scale
from benchmarks.servers import Servers
from benchmarks.turns import sized_turn
from messaging.brokers import topology
from testing.rabbitmq import RabbitMQ, find_binary

ROUND_TRIPS = 100  # per turn
AGAINST = "the same on RabbitMQ"


def measure(servers: Servers, scale: Scale) -> list[Figure]:
    """Take turns, both in the prefork pool; returns no figures without RabbitMQ."""
    if find_binary() is None:
        print("brokers: not measured, rabbitmq-server is not installed", file=sys.stderr)
        return []
    with RabbitMQ(servers.folder / "rabbitmq") as rabbitmq:
        peers = [_peer("on_redis", redis_url(0), 1), _peer("on_rabbitmq", rabbitmq.url, 3)]
        rates: list[list[float]] = [[], []]
        times: list[list[float]] = [[], []]
        with crews(peers, servers, scale.processes) as both:
            for number in range(scale.rounds):
                for side, crew in enumerate(both):
                    rates[side].append(sized_turn(crew, f"{crew.peer.name}-{number}", scale).rate)
                    lines = stock.lines(f"{crew.peer.name}-alone-{number}", ROUND_TRIPS)
                    times[side].append(_round_trip_ms(crew, lines))
    return [
        Figure(
            "broker_rate", "commands/s on Redis, prefork pool", AGAINST, None, at_least=True,
            ratios=ratios(*rates), measured=per_second(rates[0], rates[1], "commands"),
        ),
        Figure(
            "broker_round_trip", "send → result on Redis, one at a time", AGAINST, None, at_least=False,
            ratios=ratios(*times), measured=f"{median(times[0]):.1f} : {median(times[1]):.1f} ms",
        ),
    ]  # fmt: skip


def _peer(name: str, broker: str, results: int) -> Peer:
    env = {"ALLOCATION_BROKER_URL": broker, "ALLOCATION_RESULT_BACKEND_URL": redis_url(results)}
    return Peer(
        name,
        name,
        ours.workers,
        lambda lines: _publish(_sender(env), lines),
        prepare=lambda: _declare(broker),
        env=env,
    )


def _declare(broker: str) -> None:
    """Declare the queue: until then RabbitMQ drops its messages."""
    with Connection(broker) as connection, connection.channel() as channel:
        topology.task_queue("allocation", "allocation.commands", broker)(channel).declare()


def _sender(env: dict[str, str]) -> Celery:
    return Celery(
        "sender",
        broker=env["ALLOCATION_BROKER_URL"],
        backend=env["ALLOCATION_RESULT_BACKEND_URL"],
        set_as_current=False,
    )


def _publish(sender: Celery, lines: Sequence[Line]) -> None:
    with sender:
        ours.publish(lines, sender)


def _round_trip_ms(crew: Crew, lines: Sequence[Line]) -> float:
    """Return the median over the lines, each sent once the previous one is answered."""
    times = []
    crew.resume()
    with _sender(crew.peer.env) as sender:
        for line in lines:
            start = time.perf_counter()
            ours.send(line, sender).get(timeout=60)
            times.append((time.perf_counter() - start) * 1000)
    crew.pause()
    return median(times)
