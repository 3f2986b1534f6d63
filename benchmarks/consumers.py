"""`python -m benchmarks.consumers TRANSPORT URL QUEUE COUNT FILE OPTIONS`: idle kombu consumers in one loop.

Each has a connection of its own, as in a worker. For each message they write the milliseconds since it was
sent into the file, then acknowledge it.
"""

# mypy: disable-error-code="no-untyped-call"
# kombu is untyped in parts.

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kombu import Connection, Consumer, Exchange, Queue
from kombu.asynchronous import Hub

PREFETCH = 4


def main() -> None:
    """Consume until the process is killed."""
    transport, url, name, count, file, options = sys.argv[1:]
    hub = Hub()
    queue = Queue(name, Exchange(""), routing_key=name)
    with Path(file).open("a") as output:
        consumers = [
            _consume(transport, url, queue, json.loads(options), hub, note=_into(output))
            for _ in range(int(count))
        ]
        print(f"{len(consumers)} consumers", flush=True)
        hub.run_forever()


def _consume(
    transport: str, url: str, queue: Queue, options: dict[str, Any], hub: Hub, note: Callable[[Any], None]
) -> Consumer:
    connection = Connection(url, transport=transport, transport_options=options)
    connection.transport.holds_leases = True  # as in a worker with child processes
    connection.connect()
    consumer = Consumer(connection.channel(), [queue], on_message=note, prefetch_count=PREFETCH)
    consumer.consume()
    connection.register_with_event_loop(hub)
    return consumer


def _into(output: Any) -> Callable[[Any], None]:
    def note(message: Any) -> None:
        took_ms = (time.time() - float(message.headers["sent_at"])) * 1000
        output.write(f"{took_ms:.3f}\n")
        output.flush()
        message.ack()

    return note


if __name__ == "__main__":
    main()
