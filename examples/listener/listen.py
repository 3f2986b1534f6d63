"""Another app that hears what happened to stock: `python examples/listener/listen.py OutOfStock Deallocated`.

Its queue is its own and stays while the app is down, so what was missed arrives later. An event may arrive
twice: its `id` tells. The queue grows until the app is back, so remove one that nobody reads any more:
`python examples/listener/listen.py --forget`. `--bind KINDS` binds the queue and ends, which an operator does
for a listener without the right to (docs/security.md).
"""

import json
import os
import sys
from typing import Any

from kombu import Connection, Exchange, Message, Queue, binding
from kombu.mixins import ConsumerMixin

BROKER_URL = os.environ.get("BROKER_URL", "redis://127.0.0.1:6390/0")
QUEUE = os.environ.get("QUEUE", "warehouse.stock-news")
# The backend declares it on RabbitMQ; a listener has no right to. On Redis a declaration is local.
EVENTS = Exchange(
    "allocation.events", type="topic", durable=True, no_declare=BROKER_URL.startswith(("amqp", "pyamqp"))
)


def bound_queue(kinds: list[str]) -> Queue:
    """Return our queue, bound to events of these kinds, of every kind if none is named."""
    return Queue(QUEUE, [binding(EVENTS, routing_key=kind) for kind in kinds or ["#"]])


class Listener(ConsumerMixin):
    """Prints each event as a line of JSON; reconnects by itself."""

    def __init__(self, connection: Connection, kinds: list[str]) -> None:
        """Hear events of these kinds, of every kind if none is named."""
        self.connection = connection
        self._queue = bound_queue(kinds)

    def get_consumers(self, consumer: Any, channel: Any) -> list[Any]:  # noqa: ARG002  kombu's signature
        """Bind the queue and read it."""
        return [consumer([self._queue], on_message=self.hear, prefetch_count=10)]

    def hear(self, message: Message) -> None:
        """Do what there is to do, and only then say that the event was heard."""
        event = json.loads(message.body)
        print(json.dumps(event), flush=True)
        message.ack()


def main(arguments: list[str]) -> None:
    """Listen until Ctrl-C, bind the queue, or forget it."""
    with Connection(BROKER_URL, heartbeat=10) as connection:
        if arguments == ["--forget"]:
            Queue(QUEUE)(connection).delete()
        elif arguments[:1] == ["--bind"]:
            bound_queue(arguments[1:])(connection).declare()
        else:
            Listener(connection, arguments).run()  # type: ignore[no-untyped-call]  # kombu is untyped in parts


if __name__ == "__main__":
    main(sys.argv[1:])
