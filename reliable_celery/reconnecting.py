"""A consumer that is back soon after its broker, or another node of it, is.

Setting: comes with `reliable_celery.consumer:Consumer`.
"""

# mypy: disable-error-code="no-untyped-call"
# kombu is untyped in parts.

from __future__ import annotations

from time import monotonic, sleep
from typing import Any

from celery.concurrency.solo import TaskPool as SoloPool
from celery.worker.consumer import Consumer as CeleryConsumer
from celery.worker.consumer import delayed_delivery, mingle
from kombu.entity import Exchange
from kombu.transport.native_delayed_delivery import (
    CELERY_DELAYED_DELIVERY_EXCHANGE,
    bind_queue_to_native_delayed_delivery_exchange,
    declare_native_delayed_delivery_exchanges_and_queues,
)

from reliable_celery.alive import Alive, touching
from reliable_celery.broker_info import BrokerInfo
from reliable_celery.sentinel import is_sentinel

#: Seconds between attempts to connect; Celery waits 2 s, 4 s, 6 s, up to 30 s.
PAUSES = {"interval_start": 0.2, "interval_step": 0.3, "interval_max": 2.0}
#: Seconds between connections that are lost at once; after five in a second Celery pauses for a whole one.
BREATH_S = 0.3
#: Seconds for other workers to answer a worker that is back; Celery always waits for the whole second.
HELLO_S = 0.3
#: Seconds; a solo worker's task runs inside the event loop, so no heartbeat is sent meanwhile.
SOLO_HEARTBEAT_S = 120.0


class DelayedDelivery(delayed_delivery.DelayedDelivery):
    """Sets up delayed delivery on the node that the worker is connected to.

    Celery connects to each address of the list, and waits 9 s for a node that is away. The nodes of a cluster
    share exchanges, queues and bindings. If the addresses are those of separate brokers, each gets its own
    when the worker connects to it.
    """

    name = "Delayed delivery on one node"
    _declared = False

    def start(self, c: Any) -> None:
        """Declare the exchanges and queues, and bind the worker's queues to them."""
        self._validate_configuration(c.app)
        with c.connection.clone() as connection:
            if not (self._declared and self._exist(connection)):
                declare_native_delayed_delivery_exchanges_and_queues(
                    connection, c.app.conf.broker_native_delayed_delivery_queue_type
                )
                self._declared = True
            # Other workers bind theirs, which need not exist yet.
            for queue in c.app.amqp.queues.consume_from.values():
                bind_queue_to_native_delayed_delivery_exchange(connection, queue)

    @staticmethod
    def _exist(connection: Any) -> bool:
        """Return whether this broker has what this worker declared before."""
        exchange = Exchange(CELERY_DELAYED_DELIVERY_EXCHANGE, type="topic")
        try:
            exchange(connection.channel()).declare(passive=True)
        except connection.channel_errors:
            return False
        return True


def greet_again(c: Any) -> dict[str, Any]:
    """Ask the other workers for revoked tasks, as Celery's step does, without its wait of a whole second."""
    inspect = c.app.control.inspect(timeout=HELLO_S, connection=c.connection)
    replies: dict[str, Any] = inspect.hello(c.hostname, list(c.controller.state.revoked)) or {}
    replies.pop(c.hostname, None)
    return replies


def leave_pooled_connections(app: Any) -> None:
    """Have the main process publish by new connections, to the next node if there are several.

    It greets the other workers by a connection of the pool. On the old one it would wait for a confirmation.
    """
    connections = app.producer_pool.connections
    connections.force_close_all(close_pool=False)  # without a word to the node
    connections.connection.maybe_switch_next()
    connections.setup()  # closing leaves none to wait for


class ReconnectingConsumer(CeleryConsumer):
    """Connects again within seconds."""

    class Blueprint(CeleryConsumer.Blueprint):
        """Celery's steps, with our own for delayed delivery, the sign of life, and `inspect stats`."""

        default_steps = (
            *(step for step in CeleryConsumer.Blueprint.default_steps if "delayed_delivery" not in step),
            DelayedDelivery,
            Alive,
            BrokerInfo,
        )

    amqheartbeat: float
    _lost_at = -BREATH_S  # monotonic seconds

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.amqheartbeat and isinstance(self.pool, SoloPool):
            self.amqheartbeat = max(self.amqheartbeat, SOLO_HEARTBEAT_S)

    def connection_for_write(self, url: str | None = None, heartbeat: float | None = None) -> Any:
        """Return the connection on which Celery sends task events and nothing else.

        The event loop sends them: if it waited for confirmations, a node that answers nothing would stop it.
        """
        unconfirmed = {"confirm_publish": False}
        return self.ensure_connected(
            self.app.connection_for_write(url=url, heartbeat=heartbeat, transport_options=unconfirmed)
        )

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        """Go on with the next node of a list: this one may accept connections and answer nothing.

        A server may accept the connection and refuse everything, as after a failover: so breathe in between.
        """
        first, several, others = str(self.app.conf.broker_url).partition(";")
        if several and not is_sentinel(first):
            self.app.conf.broker_url = f"{others};{first}"
        if self.connection and self.connection.transport.driver_type == "amqp":
            leave_pooled_connections(self.app)
        if monotonic() < self._lost_at + 2 * BREATH_S:
            sleep(BREATH_S)
        self._lost_at = monotonic()
        for step in self.steps:
            if isinstance(step, mingle.Mingle):
                step.send_hello = greet_again
        super().on_connection_error_after_connected(exc)

    def ensure_connected(self, conn: Any) -> Any:
        """Connect, with short pauses between attempts; neither kombu nor Celery has a setting for them."""
        connect = conn.ensure_connection

        def ensure_connection(*args: Any, callback: Any = None, **kwargs: Any) -> Any:
            return connect(*args, callback=touching(self.app, callback), **kwargs, **PAUSES)

        conn.ensure_connection = ensure_connection
        return super().ensure_connected(conn)
