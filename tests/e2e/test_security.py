"""Accounts with the rights in docs/how-to/security.md: what they can do on the broker, and what not.

Each line of rights is read from that page and run unchanged.
"""

from __future__ import annotations

import base64
import json
import os
import pickle
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import pytest
import redis
from amqp.exceptions import AccessRefused
from celery import Celery
from celery.exceptions import SecurityError
from kombu import Connection
from kombu.exceptions import OperationalError
from redis.exceptions import NoPermissionError

from allocation.client import Allocate, AllocationClient
from allocation.domain.errors import InvalidSku
from local import ROOT
from local.processes.child import Child
from local.waiting import eventually
from messaging.client import CommandFailed
from messaging.errors import Unavailable
from testing.rabbitmq import RabbitMQ
from tests.e2e.conftest import Broker

SECURITY = (ROOT / "docs" / "how-to" / "security.md").read_text()
QUEUE = "allocation.commands"


def documented(start: str) -> list[str]:
    """Return the words of the only documented command with this beginning."""
    [command] = re.findall(rf"^{re.escape(start)} .*$", SECURITY, re.MULTILINE)
    return shlex.split(command)


def as_user(url: str, user: str) -> str:
    """Return an address with the login of an account from the page."""
    parts = urlsplit(url)
    return parts._replace(netloc=f"{user}:SECRET@{parts.hostname}:{parts.port}").geturl()


@pytest.fixture
def accounts(broker, redis_server, request) -> Iterator[None]:
    """The documented accounts of a sender and a listener, on the broker and on the results' Redis."""
    users = ("shop", "warehouse")
    with redis.Redis.from_url(redis_server.url) as server:
        for user in ("shop", "shop-results", "warehouse"):
            server.execute_command(*documented(f"ACL SETUSER {user}"))
        if not is_redis(broker):
            rabbitmq: RabbitMQ = request.getfixturevalue("rabbitmq_server")
            for user in users:
                rabbitmq.control("add_user", user, "SECRET")
                rabbitmq.control(*documented(f"rabbitmqctl set_permissions {user}")[1:])
        yield
        server.acl_deluser("shop", "shop-results", "warehouse")
    if not is_redis(broker):
        for user in users:
            rabbitmq.control("delete_user", user)


@pytest.fixture
def sender(broker, accounts) -> Broker:
    """The two addresses of a sender."""
    return Broker(as_user(broker.broker_url, "shop"), as_user(broker.result_backend_url, "shop-results"))


def is_redis(broker: Broker) -> bool:
    """Return whether the broker is Redis."""
    return broker.broker_url.startswith("redis")


@pytest.mark.timeout(300)
def test_the_typed_client_works_with_the_rights_of_a_sender(worker, sender):
    sku = f"LAMP-{uuid4()}"
    with AllocationClient(sender.broker_url, sender.result_backend_url, timeout_s=30) as client:
        client.create_batch(ref=f"b-{sku}", sku=sku, qty=2)

        assert client.allocate(orderid="o1", sku=sku, qty=1) == f"b-{sku}"
        assert client.answer(client.delay(Allocate("o1", sku, 1))) == f"b-{sku}"
        with pytest.raises(InvalidSku):
            client.allocate(orderid="o1", sku="NONE", qty=1)
        assert [outcome.result for outcome in client.many([Allocate("o2", sku, 1)])] == [f"b-{sku}"]


@pytest.mark.timeout(300)
def test_plain_celery_works_with_the_rights_of_a_sender(worker, sender):
    """On Redis as in the README; on RabbitMQ with the exchange from the page."""
    sku, route = f"LAMP-{uuid4()}", {"queue": QUEUE}
    if not is_redis(sender):
        [snippet] = re.findall(r"^app\.send_task\((.*?)^\)", SECURITY, re.MULTILINE | re.DOTALL)
        route = dict(re.findall(r'(exchange|routing_key)="([^"]+)"', snippet))
    with Celery(broker=sender.broker_url, backend=sender.result_backend_url, set_as_current=False) as app:
        batch = {"ref": f"b-{sku}", "sku": sku, "qty": 1, "eta": None}
        sent = app.send_task("allocation.create_batch", kwargs=batch, declare=(), **route)

        assert sent.get(timeout=30) is None
        del sent


REDIS_SENDER = [
    "SADD _kombu.binding.allocation.events x",
    "SADD _kombu.binding.allocation.events #\x06\x16^.*?$\x06\x16allocation.commands",
    "SREM _kombu.binding.allocation.events x",
    "SMEMBERS _kombu.binding.allocation.events",
    "DEL _kombu.binding.allocation.events",
    "LPUSH _kombu.binding.allocation.events x",
    "LPUSH _kombu.binding.allocation.commands x",
    "LPUSH allocation.events {}",
    "LPUSH allocation.housekeeping {}",
    "LPUSH warehouse.stock-news {}",
    "LPUSH celery-task-meta-1 {}",
    "LPUSH allocation.unacked {}",
    "RPUSH allocation.commands {}",
    "RPOP allocation.commands",
    "LRANGE allocation.commands 0 -1",
    "LMOVE allocation.commands allocation.commands LEFT RIGHT",
    "LTRIM allocation.commands 1 0",
    "DEL allocation.commands",
    "EXPIRE allocation.commands 1",
    "HGETALL allocation.unacked",
    "HDEL allocation.unacked x",
    "ZRANGE allocation.unacked_index 0 -1",
    "PUBLISH /0.celery.pidbox {}",
    "PUBLISH /0.celeryev/worker.heartbeat {}",
    "SUBSCRIBE celery-task-meta-1",
    "PSUBSCRIBE *",
    "GET celery-task-meta-1",
    "SET celery-task-meta-1 {}",
    "EVAL return(1) 0",
    "SCAN 0",
    "KEYS *",
    "SELECT 1",
    "MONITOR",
    "INFO",
    "CONFIG GET *",
    "CLIENT LIST",
    "ACL LIST",
    "SHUTDOWN NOSAVE",
    "FLUSHALL",
]
REDIS_RESULTS = [
    "SET celery-task-meta-1 {}",
    "SETEX celery-task-meta-1 9 {}",
    "LPUSH celery-task-meta-1 {}",
    "APPEND celery-task-meta-1 {}",
    "DEL celery-task-meta-1",
    "PUBLISH celery-task-meta-1 {}",
    "SUBSCRIBE /0.celery.pidbox",
    "PSUBSCRIBE *",
    "LPUSH allocation.commands {}",
    "GET allocation.commands",
    "GET allocation.unacked",
    "KEYS *",
    "SCAN 0",
    "MONITOR",
    "FLUSHALL",
]
REDIS_LISTENER = [
    "SADD _kombu.binding.allocation.events x",
    "BLMOVE allocation.commands warehouse.stock-news RIGHT LEFT 1",
    "BLMOVE warehouse.stock-news allocation.commands RIGHT LEFT 1",
    "BLMOVE warehouse.stock-news _kombu.binding.allocation.events RIGHT LEFT 1",
    "BLMOVE other.stock-news warehouse.stock-news RIGHT LEFT 1",
    "RPOP other.stock-news",
    "RPOP allocation.commands",
    "LINDEX allocation.commands 0",
    "LPUSH allocation.commands {}",
    "LPUSH warehouse.stock-news {}",
    "HGETALL allocation.unacked",
    "GET celery-task-meta-1",
    "PUBLISH /0.celery.pidbox {}",
    "SUBSCRIBE /0.celery.pidbox",
    "KEYS *",
]


@pytest.mark.parametrize("broker", ["redis"], indirect=True)
@pytest.mark.parametrize(
    ("user", "commands"),
    [("shop", REDIS_SENDER), ("shop-results", REDIS_RESULTS), ("warehouse", REDIS_LISTENER)],
)
def test_redis_refuses_an_account_everything_else(broker, accounts, user, commands):
    with redis.Redis.from_url(as_user(broker.broker_url, user)) as account:
        for command in commands:
            with pytest.raises(NoPermissionError):
                account.execute_command(*command.split(" "))


@pytest.mark.parametrize("broker", ["redis"], indirect=True)
def test_a_sender_on_redis_reads_the_results_whose_id_it_knows(broker, accounts):
    with redis.Redis.from_url(broker.result_backend_url) as owner:
        owner.set("celery-task-meta-known", "{}")

    with redis.Redis.from_url(as_user(broker.result_backend_url, "shop-results")) as account:
        assert account.get("celery-task-meta-known") == b"{}"


def publish(exchange: str, routing_key: str, **headers: Any) -> Callable[[Connection], Any]:
    """Return an attempt to publish."""
    return lambda connection: connection.Producer().publish(
        {}, exchange=exchange, routing_key=routing_key, headers=headers
    )


def on_channel(method: str, *args: Any, **options: Any) -> Callable[[Connection], Any]:
    """Return another attempt."""
    return lambda connection: getattr(connection.channel(), method)(*args, **options)


CONTROL = "celery.pidbox"
DURABLE = {"durable": True, "auto_delete": False}
RABBITMQ_BOTH = {
    "a queue by its name": publish("", QUEUE),
    "deliveries by their queue": publish("", "allocation.events"),
    "housekeeping by its queue": publish("", "allocation.housekeeping"),
    "a worker's control queue": publish("", "commands@host.celery.pidbox"),
    "a listener's queue": publish("", "another.stock-news"),
    "deliveries": publish("allocation.tasks", "allocation.events"),
    "housekeeping": publish("allocation.tasks", "allocation.housekeeping"),
    "events": publish("allocation.events", "OutOfStock"),
    "dead letters": publish("allocation.dead", QUEUE),
    "delays": publish("celery_delayed_27", QUEUE),
    "control commands": publish(CONTROL, ""),
    "replies to control commands": publish("reply.celery.pidbox", "x"),
    "Flower's events": publish("celeryev", "worker.heartbeat"),
    "take": on_channel("basic_get", QUEUE),
    "consume": on_channel("basic_consume", QUEUE),
    "purge": on_channel("queue_purge", QUEUE),
    "delete": on_channel("queue_delete", QUEUE),
    "declare": on_channel("queue_declare", "another", **DURABLE),
    "declare ours": on_channel("queue_declare", QUEUE, **DURABLE),
    "unbind": on_channel("queue_unbind", QUEUE, "allocation.tasks", QUEUE),
    "bind ours to events": on_channel("queue_bind", QUEUE, "allocation.events", "#"),
    "delete the exchange": on_channel("exchange_delete", "allocation.events"),
    "delete the senders' exchange": on_channel("exchange_delete", "allocation.commands"),
    "declare an exchange": on_channel("exchange_declare", "mine", "topic", **DURABLE),
    "bind exchanges": on_channel("exchange_bind", "allocation.commands", "allocation.events", "#"),
}
RABBITMQ_LISTENER = {
    "commands": publish("allocation.commands", QUEUE),
    "copy commands": on_channel("queue_bind", "warehouse.stock-news", "allocation.commands", QUEUE),
    "copy deliveries": on_channel("queue_bind", "warehouse.stock-news", "allocation.tasks", "#"),
    "copy dead letters": on_channel("queue_bind", "warehouse.stock-news", "allocation.dead", "#"),
    "copy control commands": on_channel("queue_bind", "warehouse.stock-news", CONTROL, ""),
    "read another listener's queue": on_channel("basic_get", "another.stock-news"),
    "forward to commands": on_channel(
        "queue_declare", "warehouse.stock-news", **DURABLE, arguments={"x-dead-letter-exchange": QUEUE}
    ),
    "forward to control": on_channel(
        "queue_declare",
        "warehouse.stock-news",
        **DURABLE,
        arguments={"x-dead-letter-exchange": "celery.pidbox"},
    ),
}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("broker", ["rabbitmq"], indirect=True)
@pytest.mark.parametrize(
    ("user", "attempts"),
    [("shop", RABBITMQ_BOTH), ("warehouse", RABBITMQ_BOTH | RABBITMQ_LISTENER)],
    ids=["shop", "warehouse"],
)
def test_rabbitmq_refuses_an_account_everything_else(worker, housekeeping, broker, accounts, user, attempts):
    with Connection(broker.broker_url) as owner, owner.channel() as channel:
        channel.queue_declare("another.stock-news", **DURABLE)
    allowed = []
    for name, attempt in attempts.items():
        url = as_user(broker.broker_url, user)
        with Connection(url, transport_options={"confirm_publish": True}) as connection:
            try:
                attempt(connection)
                allowed.append(name)
            except AccessRefused:
                pass

    with Connection(broker.broker_url) as owner, owner.channel() as channel:
        channel.queue_delete("another.stock-news")
    assert allowed == []


@pytest.mark.timeout(300)
@pytest.mark.parametrize("broker", ["rabbitmq"], indirect=True)
def test_a_sender_on_rabbitmq_reaches_no_other_queue_by_headers(worker, broker, sender):
    """CC and BCC are routing keys too, and rights on topics do not look at them."""
    with Connection(broker.broker_url) as owner, owner.channel() as channel:
        channel.queue_declare("another.stock-news", **DURABLE)
        keys = ["another.stock-news", "allocation.housekeeping", "#", "commands.celery.pidbox"]
        with Connection(sender.broker_url, transport_options={"confirm_publish": True}) as connection:
            publish(QUEUE, "x", CC=keys, BCC=keys)(connection)

        assert channel.queue_declare("another.stock-news", passive=True).message_count == 0
        assert broker.waiting("allocation.housekeeping") == 0
        channel.queue_delete("another.stock-news")
    with Connection(sender.broker_url) as connection:
        assert connection.channel().queue_declare("allocation.events", passive=True).message_count == 0


@pytest.mark.timeout(300)
@pytest.mark.parametrize("broker", ["rabbitmq"], indirect=True)
@pytest.mark.parametrize(
    ("key", "also", "is_replayed"),
    [(QUEUE, "another.stock-news", True), ("another.stock-news", QUEUE, False)],
)
def test_a_dead_letter_is_replayed_to_no_queue_that_its_sender_cannot_reach(
    worker, backend, broker, sender, key: str, also: str, is_replayed: bool
):
    """A replay is published by the backend, which may reach every queue."""
    headers = {"task": "allocation.allocate", "id": str(uuid4()), "CC": [also]}
    with Connection(broker.broker_url) as owner, owner.channel() as channel:
        channel.queue_declare("another.stock-news", **DURABLE)
        with Connection(sender.broker_url, transport_options={"confirm_publish": True}) as connection:
            publish(QUEUE, key, **headers)(connection)
        letters = "SELECT id::text, replayed_at FROM dead_letters WHERE task_id = :id ORDER BY at"
        [(letter, _)] = eventually(lambda: backend.sql(letters, id=headers["id"]), 60, "the dead letter")

        tool = [sys.executable, "-m", "allocation", "dead-letters", "replay", letter]
        done = subprocess.run(tool, env={**os.environ, **backend.env}, cwd=ROOT, check=False, timeout=60)

        assert (done.returncode == 0) is is_replayed
        assert channel.queue_declare("another.stock-news", passive=True).message_count == 0
        channel.queue_delete("another.stock-news")
    if is_replayed:  # to the queue of commands: it comes back
        eventually(lambda: len(backend.sql(letters, id=headers["id"])) == 2, 60, "the message")


@pytest.mark.timeout(300)
def test_a_sender_cannot_shut_a_worker_down(worker, sender, shop):
    with Celery(broker=sender.broker_url, set_as_current=False) as app:
        with pytest.raises((AccessRefused, OperationalError)):
            app.control.shutdown()
        with pytest.raises((AccessRefused, OperationalError)):
            app.control.revoke(str(uuid4()), terminate=True)

    shop.ask("create_batch", ref=str(uuid4()), sku="ALIVE", qty=1)
    assert worker.running


@contextmanager
def listening(command: list[str], folder: Path, broker_url: str) -> Iterator[Child]:
    """The example listener, with the name from the page."""
    env = {"BROKER_URL": broker_url, "QUEUE": "warehouse.stock-news", "PATH": ""}
    child = Child("listener", [sys.executable, *command], log=folder / "listener.log", env=env, cwd=ROOT)
    child.start()
    try:
        yield child
    finally:
        child.stop()


def bind_as_operator(broker_url: str, *arguments: str) -> None:
    """Run the documented command with the backend's own login."""
    env = {"BROKER_URL": broker_url, "QUEUE": "warehouse.stock-news", "PATH": ""}
    command = [sys.executable, "examples/listener/listen.py", *arguments]
    subprocess.run(command, env=env, cwd=ROOT, check=True, timeout=60)


@pytest.mark.timeout(300)
def test_a_listener_with_the_documented_rights_gets_its_events(
    worker, housekeeping, broker, accounts, shop, tmp_path
):
    program = "examples/listener/listen.py"
    if is_redis(broker):
        program = "examples/listener/listen_on_redis.py"
        bind_as_operator(broker.broker_url, "--bind", "BatchCreated")
    with listening([program, "BatchCreated"], tmp_path, as_user(broker.broker_url, "warehouse")) as child:

        def hears() -> bool:
            assert child.running, child.log_tail()
            shop.ask("create_batch", ref=str(uuid4()), sku="HEARD", qty=1)
            return '"HEARD"' in child.log_text()

        eventually(hears, 60, "the event", every=0.5)
    bind_as_operator(broker.broker_url, "--forget")


@pytest.mark.parametrize("broker", ["redis"], indirect=True)
def test_a_listener_on_redis_that_is_killed_gets_its_event_again(broker, accounts, tmp_path):
    """It may have been killed before it handled the event: better twice than lost."""
    event = json.dumps({"body": json.dumps({"id": "1"}), "properties": {}})
    with redis.Redis.from_url(broker.broker_url) as owner:
        owner.lpush("warehouse.stock-news.taken", event)

        command = ["examples/listener/listen_on_redis.py"]
        with listening(command, tmp_path, as_user(broker.broker_url, "warehouse")) as child:
            eventually(lambda: '{"id": "1"}' in child.log_text(), 30, "the event that was taken")
            eventually(lambda: not owner.exists("warehouse.stock-news.taken"), what="its end")


@pytest.mark.timeout(300)
@pytest.mark.parametrize("broker", ["rabbitmq"], indirect=True)
def test_a_client_gets_an_error_if_the_backend_was_never_started(broker, redis_server):
    """RabbitMQ would drop a message for a missing queue, and confirm it."""
    with Connection(broker.broker_url) as owner, owner.channel() as channel:
        channel.exchange_delete("allocation.commands")

    addresses = broker.broker_url, broker.result_backend_url
    with AllocationClient(*addresses) as client, pytest.raises(Unavailable, match="NotFound"):
        client.delay(Allocate("o1", "LAMP", 1))


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """A file that exists only if an attack succeeded."""
    return tmp_path / "canary"


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.canary}'",)


@pytest.mark.parametrize("broker", ["redis"], indirect=True)
def test_a_control_command_that_is_not_json_is_not_loaded(worker, broker, shop, canary):
    with redis.Redis.from_url(broker.broker_url) as owner:
        envelope = {
            "body": base64.b64encode(pickle.dumps(Trap(canary))).decode(),
            "content-type": "application/x-python-serialize",
            "content-encoding": "binary",
            "headers": {},
            "properties": {
                "delivery_tag": "t", "body_encoding": "base64",
                "delivery_info": {"exchange": "celery.pidbox", "routing_key": ""},
            },
        }  # fmt: skip
        assert owner.publish("/0.celery.pidbox", json.dumps(envelope)) > 0

    eventually(
        lambda: "python-serialize" in worker.log_text() or "pickle" in worker.log_text(), what="a refusal"
    )
    shop.ask("create_batch", ref=str(uuid4()), sku="ALIVE", qty=1)
    assert worker.running
    assert not canary.exists()


@pytest.mark.parametrize("broker", ["redis"], indirect=True)
@pytest.mark.parametrize(
    ("module", "kind", "argument"),
    [("builtins", "SystemExit", "1"), ("os", "system", "touch {}"), ("builtins", "exec", "open('{}', 'w')")],
)
def test_the_typed_client_turns_forged_results_only_into_declared_errors(
    broker, canary, module, kind, argument
):
    forged = {"exc_module": module, "exc_type": kind, "exc_message": [argument.format(canary)]}
    answer = {"status": "FAILURE", "result": forged, "traceback": None, "children": [], "task_id": "forged"}
    with redis.Redis.from_url(broker.result_backend_url) as owner:
        owner.set("celery-task-meta-forged", json.dumps(answer))

    with (
        AllocationClient(broker.broker_url, broker.result_backend_url) as client,
        pytest.raises((CommandFailed, SecurityError)),
    ):
        client.answer("forged")

    assert not canary.exists()


@pytest.mark.parametrize("broker", ["redis"], indirect=True)
def test_a_list_of_too_many_commands_is_refused_as_a_whole(worker, broker, shop, backend):
    sku = f"LAMP-{uuid4()}"
    lines = [["allocation.create_batch", {"ref": f"{sku}-{n}", "sku": sku, "qty": 1}] for n in range(1001)]

    with pytest.raises(Exception, match="1000"):
        shop.ask("many", lines)

    assert backend.sql("SELECT count(*) FROM batches WHERE sku = :sku", sku=sku) == [(0,)]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("broker", ["redis"], indirect=True)
def test_messages_for_other_tasks_change_nothing(worker, broker, sender, shop, backend, module_mail):
    """A handler's task relies on its delivery's row; housekeeping ignores the message's content."""
    sku = f"LAMP-{uuid4()}"
    shop.ask("create_batch", ref=f"b-{sku}", sku=sku, qty=1)
    order = shop.send("allocate", "o1", sku, 2)
    done = "SELECT id::text FROM deliveries WHERE correlation_id = :id AND status = 'done'"
    [[delivery]] = eventually(lambda: backend.sql(done, id=order.id), 60, "the delivery")
    query = "SELECT id, status, attempts FROM deliveries ORDER BY id"
    mails, rows = len(module_mail.mails), backend.sql(query)

    with Celery(broker=sender.broker_url, set_as_current=False) as app:
        for name in ("send_out_of_stock_notification", "reallocate"):
            for task_id in (delivery, str(uuid4()), "no id"):
                forged = {"sku": "FORGED", "event": {"sku": "FORGED"}}
                app.send_task(
                    f"allocation.{name}", [forged], forged, task_id=task_id, queue=QUEUE, declare=()
                )
        for name in ("relay", "announce", "rerun", "prune"):
            app.send_task(f"allocation.{name}", [0], {"older_than": 0}, queue=QUEUE, declare=())

    with redis.Redis.from_url(broker.broker_url) as owner:
        eventually(
            lambda: not owner.llen(QUEUE) and not owner.hlen("allocation.unacked"),
            60,
            "the end of the attack",
        )
    assert backend.sql(query) == rows
    assert len(module_mail.mails) == mails
    assert worker.running
