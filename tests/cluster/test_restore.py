"""A database restored to an earlier point, while the broker has gone on: what its messages do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import pytest

from allocation.domain.commands import Allocate, CreateBatch
from local.servers.postgres_server import Postgres
from messaging.delivery import new_id
from messaging.postgres.inbox import Answer
from messaging.worker.app import MessagingApp
from messaging.worker.commands import handle
from messaging.worker.received import Received
from testing import databases
from tests.integration.outbox import app_on, ask


@contextmanager
def on(url: str) -> Iterator[MessagingApp]:
    """The backend's app on a database, without a session on it afterwards."""
    apps = app_on(url)
    with ExitStack() as stack:
        stack.callback(lambda: next(apps, None))
        yield next(apps)


def message(key: str | None = None) -> Received:
    name = new_id()
    return Received(name, "allocation.allocate", key, name, False, False, "allocation.commands")


@pytest.fixture
def earlier(postgres: Postgres, new_database: Callable[[], str]) -> tuple[str, str, Received]:
    """A database, a copy of it from before its last order, and the message of the order before that."""
    url, first = new_database(), message()
    with on(url) as app:
        handle(app.runtime, message(), lambda: CreateBatch("b1", "LAMP", 10))
        assert handle(app.runtime, first, lambda: Allocate("o1", "LAMP", 1))[0] == Answer("b1")
    return url, databases.copy_database(postgres, url.rpartition("/")[2]), first


def test_a_broker_that_is_ahead_of_the_restored_database_does_its_messages_again_or_nothing(earlier):
    """What was carried out after the backup is carried out again; what is in it is answered from it."""
    url, restored, first = earlier
    last = message("order-2")
    with on(url) as app:
        answer, _ = handle(app.runtime, last, lambda: Allocate("o2", "LAMP", 1))
        assert answer == Answer("b1")

    with on(restored) as app:
        for copy, order in (first, Allocate("o1", "LAMP", 1)), (last, Allocate("o2", "LAMP", 1)):
            again = replace(copy, redelivered=True)
            assert handle(app.runtime, again, lambda order=order: order)[0] == Answer("b1")
        assert ask(app, "SELECT orderid FROM allocations ORDER BY 1") == [("o1",), ("o2",)]


def test_a_broker_that_is_behind_the_restored_database_only_repeats(earlier):
    """A message that the database has answered already changes nothing, whoever restored what."""
    url, _, first = earlier
    with on(url) as app:
        for copy in (replace(first, redelivered=True), first):
            assert handle(app.runtime, copy, lambda: Allocate("o1", "LAMP", 1))[0] == Answer("b1")
        assert ask(app, "SELECT count(*) FROM allocations") == [(1,)]
