"""Failing servers during a load: each fault breaks one and restores it."""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from contextlib import ExitStack, suppress

import psycopg2

from local.waiting import eventually
from tests.chaos.fault import OUTAGE_S, fault, last
from tests.chaos.traffic import Traffic
from tests.chaos.world import MAX_CONNECTIONS, WORKERS, World

# Redis


@fault("Redis stopped and started with its data", needs="redis")
def redis_restarted(world: World, _traffic: Traffic, _rng: random.Random) -> None:
    world.redis.stop()
    last(OUTAGE_S)
    world.redis.start()


@fault("Redis killed with SIGKILL and started with its data, appendfsync always", needs="redis")
def redis_killed(world: World, traffic: Traffic, rng: random.Random) -> None:
    traffic.results.config_set("appendfsync", "always")  # until the kill
    last(rng.uniform(0.1, 0.5))
    traffic.burst(40)
    last(rng.uniform(0, 0.2))
    world.redis.kill()
    world.redis.start()


@fault(
    "Redis killed with SIGKILL, appendfsync everysec: up to a second may be gone", forgets=True, needs="redis"
)
def redis_killed_everysec(world: World, _traffic: Traffic, _rng: random.Random) -> None:
    world.redis.kill()
    world.redis.start()


@fault("every connection to Redis closed by the server", needs="redis")
def redis_connections_closed(world: World, traffic: Traffic, _rng: random.Random) -> None:
    for kind in ("normal", "pubsub"):
        traffic.results.client_kill_filter(_type=kind, skipme=True)


@fault("FLUSHALL on Redis: messages and results are gone", forgets=True, needs="redis")
def redis_flushed(_world: World, traffic: Traffic, _rng: random.Random) -> None:
    traffic.results.flushall()


@fault("Redis killed and started without its data", forgets=True, needs="redis")
def redis_wiped(world: World, _traffic: Traffic, _rng: random.Random) -> None:
    world.redis.kill()
    shutil.rmtree(world.redis.folder / "data")
    last(OUTAGE_S)
    world.redis.start()


@fault("Redis full and workers not yet started: they start, drain it and answer", needs="redis")
def redis_full_at_start(world: World, traffic: Traffic, _rng: random.Random) -> None:
    everyone = (*WORKERS, "housekeeping")
    world.together(*(lambda name=name: world.supervisor.pause(name) for name in everyone))
    traffic.burst(60)
    eventually(lambda: len(traffic.on_broker) > 60, 30, "a backlog")
    traffic.results.config_set("maxmemory", 1)  # nothing that a worker does may make room for a sender
    try:
        waiting = traffic.on_broker
        for name in everyone:
            world.supervisor.resume(name)
        world.wait_until_ready(*everyone)
        eventually(lambda: all(one.answered_at for one in waiting), 60, "the answers of a full Redis")
    finally:
        traffic.results.config_set("maxmemory", 0)
        for name in everyone:
            if not world.children[name].running:
                world.supervisor.resume(name)


# RabbitMQ


@fault("RabbitMQ stopped and started", needs="rabbitmq")
def rabbitmq_restarted(world: World, _traffic: Traffic, _rng: random.Random) -> None:
    world.rabbitmq.stop()
    world.rabbitmq.start()


@fault("RabbitMQ killed with SIGKILL and started", needs="rabbitmq")
def rabbitmq_killed(world: World, _traffic: Traffic, _rng: random.Random) -> None:
    world.rabbitmq.kill()
    world.rabbitmq.start()


@fault("every connection to RabbitMQ closed by the server", needs="rabbitmq")
def rabbitmq_connections_closed(world: World, _traffic: Traffic, _rng: random.Random) -> None:
    world.rabbitmq.control("close_all_connections", "chaos")


# PostgreSQL


@fault("PostgreSQL restarted (fast)")
def postgres_restarted(world: World, _traffic: Traffic, _rng: random.Random) -> None:
    world.postgres.stop()
    world.postgres.start()


@fault("PostgreSQL stopped at once (immediate) and recovered")
def postgres_immediate(world: World, _traffic: Traffic, _rng: random.Random) -> None:
    os.kill(world.postgres.pid, signal.SIGQUIT)
    eventually(lambda: not world.postgres.running, 30, "the end of PostgreSQL")
    world.postgres.start()


@fault("PostgreSQL killed with SIGKILL, down for seconds, and recovered")
def postgres_killed(world: World, _traffic: Traffic, _rng: random.Random) -> None:
    world.postgres.kill()
    last(OUTAGE_S)
    world.postgres.start()


@fault("every session on PostgreSQL terminated, three times")
def backends_terminated(world: World, _traffic: Traffic, rng: random.Random) -> None:
    for _ in range(3):
        _terminate_sessions(world)
        last(rng.uniform(0, 0.5))


def _terminate_sessions(world: World) -> None:
    world.ask(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )


CUT_OTHERS = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE usename = current_user AND application_name <> 'taker'"""


@fault("all connections of PostgreSQL taken by others, sessions terminated")
def connections_exhausted(world: World, _traffic: Traffic, _rng: random.Random) -> None:
    url = world.addresses.database_url.replace("+psycopg2", "", 1)
    with ExitStack() as taken:
        end = time.monotonic() + OUTAGE_S
        while time.monotonic() < end:
            with suppress(psycopg2.OperationalError):
                for _ in range(MAX_CONNECTIONS):
                    session = psycopg2.connect(url, application_name="taker")
                    taken.callback(session.close)
            # One of them terminates the others' sessions, and the next turn takes their places.
            session.autocommit = True
            session.cursor().execute(CUT_OTHERS)


@fault("a lock on every product held for seconds")
def lock_held(world: World, _traffic: Traffic, _rng: random.Random) -> None:
    with world.sql() as run:
        run.execute("BEGIN; LOCK TABLE products IN EXCLUSIVE MODE")
        last(OUTAGE_S)
        run.execute("COMMIT")


@fault("deadlocks: locks taken in the opposite order, repeatedly")
def deadlocks(world: World, _traffic: Traffic, _rng: random.Random) -> None:
    end = time.monotonic() + OUTAGE_S
    while time.monotonic() < end:
        with suppress(psycopg2.Error), world.sql() as run:
            run.execute("BEGIN; SELECT FROM batches FOR UPDATE")
            last(0.1)
            run.execute("SELECT FROM products FOR UPDATE; COMMIT")


@fault("a read-only database, as after a failover or before a disk is full")
def postgres_read_only(world: World, _traffic: Traffic, _rng: random.Random) -> None:
    world.ask("ALTER DATABASE allocation SET default_transaction_read_only = on")
    _terminate_sessions(world)
    last(OUTAGE_S)
    with world.sql() as run:
        run.execute("SET transaction_read_only = off; SET default_transaction_read_only = off")
        run.execute("ALTER DATABASE allocation RESET default_transaction_read_only")


@fault("PostgreSQL's disk full, then room again", needs="small disk")
def disk_full(world: World, _traffic: Traffic, _rng: random.Random) -> None:
    filler = world.postgres.folder / "filler"
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(65_536))
    last(2 * OUTAGE_S)
    filler.unlink()
    if not world.postgres.running:  # it exits when it cannot write its log
        world.postgres.start()


# Mail


@fault("the mail server down for longer than all retries")
def mail_down(world: World, _traffic: Traffic, _rng: random.Random) -> None:
    world.mail.stop()
    last(3 * OUTAGE_S)
    world.mail.start()


@fault("a mail server slower than its senders' timeout")
def mail_slow(world: World, _traffic: Traffic, _rng: random.Random) -> None:
    _mail_with(world, "--delay", "1.5")


@fault("a mail server that answers 451")
def mail_refuses(world: World, _traffic: Traffic, _rng: random.Random) -> None:
    _mail_with(world, "--reply", "451 try later")


@fault("a mail server that accepts the mail and drops the connection")
def mail_drops_after_data(world: World, _traffic: Traffic, _rng: random.Random) -> None:
    _mail_with(world, "--drop-after-data")


def _mail_with(world: World, *switches: str) -> None:
    world.restart_mail(*switches)
    last(OUTAGE_S)
    world.restart_mail()
