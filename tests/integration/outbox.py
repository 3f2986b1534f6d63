"""Insert deliveries into the table, for tests that act on them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self

from sqlalchemy import event, text

import celeryconfig
from allocation.adapters.unit_of_work import PostgresAllocationUnitOfWork
from allocation.bootstrap import project
from allocation.config import Settings
from messaging.bus import MessageBus
from messaging.delivery import new_id
from messaging.messages import Command, Event
from messaging.worker.app import MessagingApp, make_app

INSERT = text("""
INSERT INTO deliveries (id, event_id, event_type, payload, handler, status, attempts, auto_reruns,
                        due_at, grace_s, correlation_id, causation_id, created_at, finished_at, last_error,
                        waits_for)
VALUES (:id, :id, :event_type, jsonb_build_object('sku', CAST(:sku AS text)), :handler, :status, 3,
        :auto_reruns, now(), 1, :correlation, :correlation, now() - make_interval(secs => :age_s),
        CASE WHEN :status NOT IN ('pending', 'waiting') THEN now() - make_interval(secs => :age_s) END,
        :error, CASE WHEN :status = 'waiting' THEN 'pause' END)
""")

USUAL = {
    "event_type": "OutOfStock",
    "handler": "send_out_of_stock_notification",
    "sku": "LAMP",
    "status": "failed",
    "auto_reruns": 0,
    "correlation": "command",
    "age_s": 3600.0,
    "error": "ConnectionRefusedError: [Errno 111] Connection refused",
}


def app_on(
    database_url: str,
    events: dict[type[Event], list[Callable[..., None]]] | None = None,
    renamed: dict[str, str] | None = None,
    commands: dict[type[Command], Callable[..., Any]] | None = None,
    **options: Any,
) -> Iterator[MessagingApp]:
    """Return the backend's app on a database, with the test's own settings and a broker in memory.

    `events` adds or replaces handlers of events, `renamed` says which names they had before, `commands` adds
    or replaces handlers of commands.
    """
    settings = Settings(_env_file=None, database_url=database_url, **options)
    changed = dataclasses.replace(
        project,
        bus=MessageBus(
            {**project.bus.commands, **(commands or {})}, {**project.bus.events, **(events or {})}
        ),
        settings=lambda: settings,
        renamed_handlers={"announce_to_the_team": "send_out_of_stock_notification", **(renamed or {})},
    )
    app = make_app(changed, celeryconfig)
    app.conf.update(broker_url="memory://localhost", broker_transport=None, broker_transport_options={})
    sent(app)  # the memory is shared by the process, so earlier tests' messages are deleted
    yield app
    app.close()
    app.runtime.engine.dispose()


def put(app: MessagingApp, **facts: Any) -> str:
    """Write one delivery, `USUAL` except for these values; return its id."""
    delivery_id = new_id()
    with app.runtime.engine.begin() as connection:
        connection.execute(INSERT, {**USUAL, **facts, "id": delivery_id})
    return delivery_id


def ask(app: MessagingApp, query: str, **values: Any) -> list[tuple[Any, ...]]:
    """Return the rows of a query."""
    with app.runtime.engine.begin() as connection:
        return [tuple(row) for row in connection.execute(text(query), values)]


def rows_read(app: MessagingApp, act: Callable[[], object]) -> int:
    """Return how many rows of deliveries, or entries of their indexes, an action reads."""

    def so_far() -> int:
        ask(app, "SELECT 1 FROM pg_stat_force_next_flush()")  # at the end of this transaction
        query = """SELECT (SELECT sum(idx_tup_read) FROM pg_stat_user_indexes WHERE relname = 'deliveries')
                          + (SELECT seq_tup_read FROM pg_stat_user_tables WHERE relname = 'deliveries')"""
        return int(ask(app, query)[0][0])

    before = so_far()
    act()
    return so_far() - before


def state(app: MessagingApp, delivery_id: str) -> str:
    """Return a delivery's state."""
    return str(ask(app, "SELECT status FROM deliveries WHERE id = CAST(:id AS uuid)", id=delivery_id)[0][0])


def sent(app: MessagingApp, queue: str = "allocation.events") -> list[str]:
    """Remove the messages of a queue; return their task ids."""
    ids = []
    with app.connection_for_read() as connection, connection.SimpleQueue(queue) as simple:
        while simple.qsize():
            message = simple.get(block=False)
            ids.append(message.headers["id"])
            message.ack()
    return ids


def receive(
    app: MessagingApp, delivery_id: str, handler: str, *, redelivered: bool = False
) -> BaseException | None:
    """Run a handler's task for a delivery's message as a worker does; return the raised error."""
    task = app.tasks[f"allocation.{handler}"]
    task.push_request(id=delivery_id, hostname="worker", delivery_info={"redelivered": redelivered})
    try:
        task.run()
    except BaseException as error:  # noqa: BLE001  any error is returned
        return error
    finally:
        task.pop_request()
    return None


@contextmanager
def refused(app: MessagingApp, statement: str) -> Iterator[None]:
    """Have a program die at each statement that begins like this."""

    def refuse(_connection: Any, _cursor: Any, sent: str, *_: Any) -> None:
        if sent.strip().startswith(statement):
            raise RuntimeError("refused by the test")

    event.listen(app.runtime.engine, "before_cursor_execute", refuse)
    try:
        yield
    finally:
        event.remove(app.runtime.engine, "before_cursor_execute", refuse)


def failing_as_it_begins() -> type[PostgresAllocationUnitOfWork]:
    """Return a unit of work that fails in its own `__enter__`, the first time."""
    begun: list[Any] = []

    class UnitOfWork(PostgresAllocationUnitOfWork):
        def __enter__(self) -> Self:
            super().__enter__()
            begun.append(self.job)
            if len(begun) == 1:
                raise ConnectionRefusedError("a server that it needs is down")
            return self

    return UnitOfWork
