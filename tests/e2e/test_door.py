"""What a sender with access to the broker can do: what docs/security.md says, and no more."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

import pytest
import redis
from amqp.exceptions import AccessRefused
from kombu import Connection

from allocation.client import AllocationClient
from local.child import ROOT
from tests.e2e.conftest import Broker

SECURITY = (ROOT / "docs" / "security.md").read_text()


def documented(pattern: str) -> str:
    """Return the command that the document shows."""
    [command] = re.findall(pattern, SECURITY, re.MULTILINE)
    return str(command)


@pytest.fixture(scope="module")
def broker(broker_of) -> Broker:
    """Redis alone."""
    return broker_of("redis")


def as_shop(url: str) -> str:
    """Return an address with the sender's login."""
    return url.replace("redis://", "redis://shop:SECRET@")


@pytest.fixture
def restricted(broker):
    """The sender's account, made by the documented line."""
    with redis.Redis.from_url(broker.broker_url) as server:
        server.execute_command(*documented("^ACL SETUSER .*$").split())
        yield
        server.acl_deluser("shop")


def test_a_sender_with_the_documented_rights_on_redis_sends_and_hears(worker, broker, restricted):
    addresses = as_shop(broker.broker_url), as_shop(broker.result_backend_url)

    with AllocationClient(*addresses, timeout_s=30) as client:
        client.create_batch(ref="door-batch", sku="DOOR", qty=1)

        assert client.allocate(orderid="o1", sku="DOOR", qty=1) == "door-batch"


@pytest.mark.parametrize(
    "command",
    [
        ("RPOP", "allocation.commands"),
        ("LRANGE", "allocation.commands", "0", "-1"),
        ("LPUSH", "allocation.events", "{}"),
        ("LPUSH", "allocation.housekeeping", "{}"),
        ("HGETALL", "allocation.unacked"),
        ("PUBLISH", "/0.celery.pidbox", "{}"),
        ("SET", "celery-task-meta-1", "{}"),
        ("KEYS", "*"),
        ("FLUSHALL",),
    ],
)
def test_it_can_do_nothing_else(broker, restricted, command):
    with redis.Redis.from_url(as_shop(broker.broker_url)) as shop, pytest.raises(redis.ResponseError):
        shop.execute_command(*command)


@pytest.mark.timeout(300)
def test_a_sender_with_the_documented_rights_on_rabbitmq_sends_and_cannot_read(rabbitmq_server):
    rights = documented(r"^rabbitmqctl set_permissions shop (.*)$").replace("'", "").split()
    rabbitmq_server.control("add_user", "shop", "SECRET")
    rabbitmq_server.control("set_permissions", "shop", *rights)
    with Connection(rabbitmq_server.url) as owner:
        owner.channel().queue_declare("door", durable=True, auto_delete=False)

    url = f"amqp://shop:SECRET@127.0.0.1:{urlsplit(rabbitmq_server.url).port}//"
    with Connection(url, transport_options={"confirm_publish": True}) as connection:
        connection.Producer().publish({}, exchange="", routing_key="door")
        with pytest.raises(AccessRefused):
            connection.channel().basic_get("door")
        with pytest.raises(AccessRefused):
            connection.channel().queue_declare("another", durable=True, auto_delete=False)

    rabbitmq_server.delete_queues("door")
    rabbitmq_server.control("delete_user", "shop")
