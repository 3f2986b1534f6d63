"""What differs between Redis and RabbitMQ, chosen by the broker's URL alone (docs/how-to/brokers.md)."""

# mypy: disable-error-code="no-untyped-call"
# kombu is untyped in parts, although it says otherwise.

from __future__ import annotations

from typing import Any

from kombu.entity import Exchange, Queue

#: How often RabbitMQ brings a message again before it is dead-lettered: well above our own count of crashes,
#: since workers that end properly give messages back too.
DELIVERY_LIMIT = 50

#: How long a publisher waits for RabbitMQ's confirmation; one that is out of memory or disk gives none.
CONFIRM_TIMEOUT_S = 10.0


def is_rabbitmq(broker_url: str) -> bool:
    """Tell whether the URL is RabbitMQ's: `amqp://`, `amqps://` or `pyamqp://`."""
    return broker_url.startswith(("amqp", "pyamqp"))


def is_redis_socket(broker_url: str) -> bool:
    """Tell whether the URL is that of a Redis on this machine: `redis+socket:///path`."""
    return broker_url.startswith("redis+socket:")


def address(broker_url: str) -> str:
    """Return the broker's URL as Celery is to have it.

    What stands before a `+` names kombu's own transport, whatever `broker_transport` says.
    """
    return broker_url.removeprefix("redis+") if is_redis_socket(broker_url) else broker_url


def transport(broker_url: str) -> str | None:
    """Return the transport to use; None: kombu's own, which RabbitMQ needs."""
    if is_rabbitmq(broker_url):
        return None
    name = "SocketTransport" if is_redis_socket(broker_url) else "Transport"
    return f"reliable_celery.redis.transport:{name}"


def task_queue(project: str, name: str, broker_url: str) -> Queue:
    """Return one of a project's queues, as everybody must declare it.

    On RabbitMQ it is a quorum queue: on the disks of most nodes before a publisher hears that it was taken.
    Its topic exchange is what Celery's native delayed delivery needs, so that retries wait in the broker.
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
    """Return RabbitMQ's exchange for senders, which leads to the queue of commands alone.

    Whoever may write to it can reach no other queue, neither by a routing key nor by the headers CC and BCC.
    """
    return Exchange(f"{project}.commands", type="direct", durable=True)


def route_of_commands(project: str, broker_url: str) -> dict[str, Any]:
    """Return how Celery's `send_task` reaches the queue of commands with the rights of a sender."""
    name = f"{project}.commands"
    if is_rabbitmq(broker_url):
        return {"exchange": name, "routing_key": name, "declare": ()}
    return {"queue": name, "declare": ()}


def dead_letter_queue(project: str) -> Queue:
    """Return where RabbitMQ puts what no worker could settle; the routing key is the queue it came from."""
    return Queue(
        f"{project}.dead",
        Exchange(f"{project}.dead", type="topic"),
        routing_key="#",
        queue_arguments={"x-queue-type": "quorum"},
    )


def events_exchange(project: str) -> Exchange:
    """Return the exchange on which other apps hear what happened; routing keys are names of events."""
    return Exchange(f"{project}.events", type="topic", durable=True)


def transport_options(
    broker_url: str,
    visibility_timeout_s: int | None = None,
    lease_s: float | None = None,
    project: str | None = None,
) -> dict[str, Any]:
    """Return kombu's options: bounded waits everywhere, confirmed publishing on RabbitMQ.

    Senders need no more than the address; the others are what a worker goes by.
    """
    if is_rabbitmq(broker_url):
        # A publisher hears from the broker that each message is safe.
        return {"confirm_publish": True, "connect_timeout": 5}
    options: dict[str, Any] = {
        # A half-open connection is noticed.
        "socket_timeout": 10,
        "socket_connect_timeout": 5,
        "socket_keepalive": True,
        "health_check_interval": 10,
        # Look for messages of dead workers every second or so, not every 100 seconds.
        "unacked_restore_interval": 1,
        "unacked_restore_throttle": 1,
    }
    if visibility_timeout_s is not None:
        # Messages of a dead worker without a lease go back after this; longer than any task runs.
        options["visibility_timeout"] = visibility_timeout_s
    if lease_s is not None:
        # Those of a worker that is silent for so long go back sooner.
        options["lease_s"] = lease_s
    if project is not None:
        # By kombu's own names every Celery app on that database gives back everybody's messages.
        options |= {f"unacked{part}_key": f"{project}.unacked{part}" for part in ("", "_index", "_mutex")}
    return options
