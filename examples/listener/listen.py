"""Another app that listens to stock events: `python examples/listener/listen.py OutOfStock Deallocated`.

Install: pip install "celery[redis]"

Its queue is its own and stays while the app is down, so what it missed arrives later. It prints each event
once, as a line of JSON; `--newest` also drops an event that arrives after a newer one about the same product.
The queue grows until the app is back, so remove one that nobody reads any more: `listen.py --forget`.
`--bind KINDS` binds the queue and ends, which an operator does for a listener without the right to
(docs/how-to/security.md).
"""

import argparse
import json
import os
import sqlite3
import sys
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from kombu import Connection, Exchange, Message, Queue, binding
from kombu.mixins import ConsumerMixin

try:  # where it is installed and set up, the event's trace goes on here
    from opentelemetry import propagate, trace

    TRACED = True
except ImportError:
    TRACED = False

BROKER_URL = os.environ.get("BROKER_URL", "redis://127.0.0.1:6390/0")
QUEUE = os.environ.get("QUEUE", "warehouse.stock-news")
#: The events of docs/asyncapi.yaml: a queue that is bound to any other name would stay empty.
KINDS = ("Allocated", "BatchCreated", "BatchQuantityChanged", "Deallocated", "OutOfStock")
#: A file survives restarts; better is your own database, in the transaction that handles the event.
MEMORY = os.environ.get("MEMORY", ":memory:")
# On RabbitMQ the backend declares it and a listener lacks the right to; on Redis a declaration is local.
EVENTS = Exchange(
    "allocation.events", type="topic", durable=True, no_declare=BROKER_URL.startswith(("amqp", "pyamqp"))
)


def bound_queue(kinds: list[str]) -> Queue:
    """Return our queue, bound to events of these kinds, or of every kind."""
    return Queue(QUEUE, [binding(EVENTS, routing_key=kind) for kind in kinds or ["#"]])


TABLES = """
CREATE TABLE IF NOT EXISTS heard (id TEXT PRIMARY KEY, at TEXT DEFAULT CURRENT_TIMESTAMP);
CREATE TABLE IF NOT EXISTS newest (subject TEXT PRIMARY KEY, sequence TEXT NOT NULL);
DELETE FROM heard WHERE at < datetime('now', '-30 days');
"""

NOTE_SEQUENCE = """
INSERT INTO newest VALUES (:subject, :sequence) ON CONFLICT (subject)
DO UPDATE SET sequence = excluded.sequence WHERE excluded.sequence > newest.sequence
"""


class Memory:
    """Recognises a repeat by the event's `id`, and an outdated event by its `subject` and `sequence`."""

    def __init__(self, path: str = MEMORY) -> None:
        """Open the file, creating it if needed."""
        self.database = sqlite3.connect(path)
        self.database.executescript(TABLES)

    def close(self) -> None:
        """Close the file."""
        self.database.close()

    def is_repeat(self, event: dict[str, Any]) -> bool:
        """Remember the event; True if it was seen before."""
        return not self.database.execute("INSERT OR IGNORE INTO heard (id) VALUES (:id)", event).rowcount

    def is_overtaken(self, event: dict[str, Any]) -> bool:
        """Remember the event's place; True if a later event of the same subject was seen before.

        Only for a listener that needs just the newest state: one that counts or adds up needs every event.
        """
        if "subject" not in event or "sequence" not in event:
            return False
        return not self.database.execute(NOTE_SEQUENCE, event).rowcount


def traced(event: dict[str, Any]) -> AbstractContextManager[object]:
    """Return a span in the trace of the order that raised the event."""
    if not TRACED:
        return nullcontext()
    return trace.get_tracer("listener").start_as_current_span(
        f"process {QUEUE}", context=propagate.extract(event), kind=trace.SpanKind.CONSUMER
    )


class Listener(ConsumerMixin):
    """Prints each event as a line of JSON; reconnects by itself."""

    def __init__(self, connection: Connection, kinds: list[str], *, only_newest: bool = False) -> None:
        """Listen to events of these kinds, or of every kind."""
        self.connection = connection
        self.memory, self.only_newest = Memory(), only_newest
        self._queue = bound_queue(kinds)

    def on_connection_error(self, exc: Exception, interval: float) -> None:
        """Say that the broker does not answer; kombu only logs it, and no log is set up here."""
        print(f"The broker does not answer ({exc}); next try in {interval:g} s", file=sys.stderr)

    def on_consume_ready(self, *_arguments: Any, **_more: Any) -> None:
        """Say what is listened to."""
        kinds = ", ".join(one.routing_key for one in self._queue.bindings).replace("#", "every event")
        print(f"Listening to {kinds} on the queue {QUEUE}", file=sys.stderr)

    def get_consumers(self, consumer: Any, channel: Any) -> list[Any]:  # noqa: ARG002  kombu's signature
        """Bind the queue and read it."""
        return [consumer([self._queue], on_message=self.receive, prefetch_count=10)]

    def receive(self, message: Message) -> None:
        """Handle the event and remember it in one transaction, and only then acknowledge it."""
        event = json.loads(message.body)
        with traced(event), self.memory.database:
            if not self.is_dropped(event):
                print(json.dumps(event), flush=True)
        message.ack()

    def is_dropped(self, event: dict[str, Any]) -> bool:
        """Tell whether an event can be ignored."""
        return self.memory.is_repeat(event) or (self.only_newest and self.memory.is_overtaken(event))


def kind(name: str) -> str:
    """Return the name of an event."""
    if name not in KINDS:
        raise argparse.ArgumentTypeError(f"no event is called {name!r}; there are {', '.join(KINDS)}")
    return name


def options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kinds", nargs="*", type=kind, metavar="EVENT", help="all events if none is named")
    parser.add_argument("--newest", action="store_true", help="drop an event that a newer one has overtaken")
    parser.add_argument("--bind", action="store_true", help="bind the queue and end")
    parser.add_argument("--forget", action="store_true", help="remove the queue and end")
    return parser.parse_args()


def main() -> None:
    """Listen until Ctrl-C, bind the queue, or forget it."""
    chosen = options()
    with Connection(BROKER_URL, heartbeat=10) as connection:
        if chosen.forget:
            Queue(QUEUE)(connection).delete()
        elif chosen.bind:
            bound_queue(chosen.kinds)(connection).declare()
        else:
            listener = Listener(connection, chosen.kinds, only_newest=chosen.newest)
            listener.run()  # type: ignore[no-untyped-call]  # kombu is untyped in parts


if __name__ == "__main__":
    main()
