"""The differences between Redis and RabbitMQ, selected by the broker's URL (docs/how-to/brokers.md)."""

# mypy: disable-error-code="no-untyped-call"
# kombu is untyped in parts, although it says otherwise.

from __future__ import annotations

from typing import Any

from kombu.entity import Exchange, Queue

from reliable_celery.farewells import close_soon
from reliable_celery.sentinel import as_celery, is_sentinel

#: How often RabbitMQ redelivers a message before it dead-letters it: well above our own limit of crashes,
#: since workers that stop properly also return messages.
DELIVERY_LIMIT = 50

#: How long a publisher waits for RabbitMQ's confirmation; a frozen node, or a broker without free memory or
#: disk, sends none.
CONFIRM_TIMEOUT_S = 5.0

#: The same for a delivery, whose task has not been answered yet: the relay sends what is missing.
DELIVERY_CONFIRM_TIMEOUT_S = 2.0

#: How long a node of RabbitMQ may send nothing while something is awaited from it; seconds.
READ_TIMEOUT_S = 6


def is_rabbitmq(broker_url: str) -> bool:
    """Return whether this is a RabbitMQ URL: `amqp://`, `amqps://` or `pyamqp://`."""
    return broker_url.startswith(("amqp", "pyamqp"))


def system(broker_url: str) -> str:
    """Return the broker's name in traces."""
    return "rabbitmq" if is_rabbitmq(broker_url) else "redis"


def is_redis_socket(broker_url: str) -> bool:
    """Return whether this is the URL of a Redis socket: `redis+socket:///path`."""
    return broker_url.startswith("redis+socket:")


def address(broker_url: str) -> str:
    """Return the broker's URL as Celery needs it.

    A prefix before `+` would select kombu's own transport, whatever `broker_transport` says.
    """
    if is_sentinel(broker_url):
        return as_celery(broker_url)
    return broker_url.removeprefix("redis+") if is_redis_socket(broker_url) else broker_url


def transport(broker_url: str) -> str | None:
    """Return the transport to use; None selects kombu's own, for RabbitMQ."""
    if is_rabbitmq(broker_url):
        return None
    name = "SocketTransport" if is_redis_socket(broker_url) else "Transport"
    name = "SentinelTransport" if is_sentinel(broker_url) else name
    return f"reliable_celery.redis.transport:{name}"


def task_queue(project: str, name: str, broker_url: str) -> Queue:
    """Return one of a project's queues, with the arguments that every app must declare it with.

    On RabbitMQ it is a quorum queue: a message is on the disks of most nodes before its publisher gets a
    confirmation. Celery's delayed delivery needs its topic exchange, so that retries wait in the broker.
    """
    if not is_rabbitmq(broker_url):
        return Queue(name, Exchange("", type="direct"), routing_key=name)
    return Queue(
        name,
        Exchange(f"{project}.tasks", type="topic"),
        routing_key=name,
        queue_arguments={
            "x-queue-type": "quorum",
            "x-dead-letter-exchange": f"{project}.dead",
            "x-delivery-limit": DELIVERY_LIMIT,
        },
    )


def commands_exchange(project: str) -> Exchange:
    """Return RabbitMQ's exchange for senders, which routes to the queue of commands only.

    Who may write only to it can reach no other queue, by a routing key or by the headers CC and BCC.
    """
    return Exchange(f"{project}.commands", type="direct", durable=True)


def route_of_commands(project: str, broker_url: str) -> dict[str, Any]:
    """Return arguments with which Celery's `send_task` reaches the queue of commands as a sender."""
    name = f"{project}.commands"
    if is_rabbitmq(broker_url):
        return {"exchange": name, "routing_key": name, "declare": ()}
    return {"queue": name, "declare": ()}


def dead_letter_queue(project: str) -> Queue:
    """Return the queue for messages that RabbitMQ dead-letters; the routing key is their original queue."""
    return Queue(
        f"{project}.dead",
        Exchange(f"{project}.dead", type="topic"),
        routing_key="#",
        queue_arguments={"x-queue-type": "quorum"},
    )


def events_exchange(project: str) -> Exchange:
    """Return the exchange on which events are published to other apps; routing keys are event names."""
    return Exchange(f"{project}.events", type="topic", durable=True)


def transport_options(
    broker_url: str,
    visibility_timeout_s: int | None = None,
    lease_s: float | None = None,
    project: str | None = None,
    sentinel: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Return kombu's options: bounded waits everywhere, confirmed publishing on RabbitMQ.

    `sentinel` are the options for Sentinel, if it is asked; the other arguments are for workers only.
    """
    if is_rabbitmq(broker_url):
        # The broker confirms to the publisher that each message is safe. A node that answers nothing is left:
        # with heartbeats it sends something twice within the time for a read.
        return {
            "confirm_publish": True,
            "connect_timeout": 3,
            "read_timeout": READ_TIMEOUT_S,
            "write_timeout": READ_TIMEOUT_S,
            # Nor is it waited for when its connections are closed.
            "on_open": close_soon,
        }
    options: dict[str, Any] = {
        # Detects half-open connections.
        "socket_timeout": 10,
        "socket_connect_timeout": 5,
        "socket_keepalive": True,
        "health_check_interval": 10,
        **(sentinel or {}),
    }
    if is_sentinel(broker_url):
        # A frozen primary is left soon after Sentinel has named another one.
        options |= {"socket_timeout": 4, "socket_connect_timeout": 2, "health_check_interval": 2}
    if visibility_timeout_s is not None:
        # A dead worker's messages, if it had no lease, are redelivered after this; longer than any task runs.
        options["visibility_timeout"] = visibility_timeout_s
    if lease_s is not None:
        # Those of a worker with a lease, once it was silent for so long.
        options["lease_s"] = lease_s
    if project is not None:
        # With kombu's own names, every Celery app on that database would requeue the messages of all.
        options |= {f"unacked{part}_key": f"{project}.unacked{part}" for part in ("", "_index", "_mutex")}
    return options
