"""A primary and its synchronous standby: what was told before a failover holds after it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
import sqlalchemy.exc

from allocation.domain.commands import Allocate, CreateBatch
from local import ROOT
from local.addresses import masked
from local.waiting import eventually
from messaging.delivery import new_id
from messaging.postgres.address import parse
from messaging.postgres.inbox import Answer
from messaging.postgres.transaction import DATABASE_ERRORS
from messaging.worker.app import MessagingApp
from messaging.worker.commands import handle
from messaging.worker.received import Received
from reliable_celery.dead_letters import DeadLetter
from testing.freezing import freeze, thaw
from testing.postgres_pair import PostgresPair
from tests.integration.outbox import app_on, ask

WAITING = "SELECT pid, query FROM pg_stat_activity WHERE wait_event = 'SyncRep'"


@pytest.fixture
def app(pair: PostgresPair) -> Iterator[MessagingApp]:
    """The backend's app on both servers, with enough attempts for a promotion on a busy machine."""
    yield from app_on(pair.url, task_time_limit_s=90, visibility_timeout_s=100, command_attempts=100)


def tell(app: MessagingApp, command: CreateBatch | Allocate) -> Answer:
    """Handle a new message as a worker does; return its sender's answer."""
    name = new_id()
    message = Received(name, "allocation.allocate", None, name, False, False, "allocation.commands")
    return handle(app.runtime, message, lambda: command)[0]


def test_an_address_names_several_servers_as_libpq_does():
    url = parse("postgresql+psycopg2://app:app%40x@one:6432,[::1],two/stock?sslmode=require")

    assert str(url.password) == "app@x"
    assert url.query["host"] == "one,::1,two"
    assert url.query["port"] == "6432,5432,5432"
    assert (url.query["target_session_attrs"], url.query["sslmode"]) == ("read-write", "require")
    assert "target_session_attrs" not in parse("postgresql+psycopg2://app@one/stock").query
    assert masked("postgresql+psycopg2://app:hush@one:1,two:2/stock") == (
        "postgresql+psycopg2://app:***@one:1,two:2/stock"
    )


def test_a_killed_primary_is_left_for_its_promoted_standby_which_has_every_answer(
    pair: PostgresPair, app: MessagingApp
):
    tell(app, CreateBatch("b1", "LAMP", 10))
    assert tell(app, Allocate("o1", "LAMP", 3)) == Answer("b1")

    pair.primary.kill()
    pair.promote()

    assert tell(app, Allocate("o2", "LAMP", 3)) == Answer("b1")
    assert ask(app, "SELECT orderid FROM allocations ORDER BY 1") == [("o1",), ("o2",)]
    _run_tool(pair, "deliveries", "list")


def test_nobody_is_told_what_only_a_lost_primary_has(pair: PostgresPair, app: MessagingApp):
    """The standby is away, the waiting session is ended, the primary dies, the standby takes over."""
    tell(app, CreateBatch("b1", "LAMP", 10))
    freeze(pair.standby.pid)
    with ThreadPoolExecutor(1) as thread:
        order: Future[Answer] = thread.submit(tell, app, Allocate("o1", "LAMP", 3))
        [(session, _)] = eventually(lambda: pair.primary.ask(WAITING), what="the commit that waits")
        pair.primary.ask("SELECT pg_terminate_backend(%s)", session)
        eventually(
            lambda: [query for _, query in pair.primary.ask(WAITING) if "emit_message" in query],
            what="the answer from the inbox, which waits too",
        )
        assert not order.done()
        pair.primary.kill()
        thaw(pair.standby.pid)
        pair.promote()

        assert order.result(60) == Answer("b1")
    assert ask(app, "SELECT orderid FROM allocations") == [("o1",)]


def test_no_event_is_published_that_a_failover_could_undo(pair: PostgresPair, app: MessagingApp):
    """Listeners would act on it, and drop the later event that gets its number on the promoted standby."""
    tell(app, CreateBatch("b1", "LAMP", 10))
    published: list[str] = []

    def announce() -> None:
        with app.runtime.announcements.take(10) as announcements:
            published.extend(one.event_type for one in announcements)

    announce()
    assert published == ["BatchCreated"]
    freeze(pair.standby.pid)
    with ThreadPoolExecutor(2) as threads, ExitStack() as stack:
        stack.callback(thaw, pair.standby.pid)
        order = threads.submit(tell, app, Allocate("o1", "LAMP", 3))
        [(session, _)] = eventually(lambda: pair.primary.ask(WAITING), what="the commit that waits")
        pair.primary.ask("SELECT pg_terminate_backend(%s)", session)
        eventually(lambda: ask(app, "SELECT FROM allocations"), what="the commit, which is visible")
        early = threads.submit(announce)
        eventually(lambda: len(pair.primary.ask(WAITING)) == 2, what="the announcer, which waits too")
        assert published == ["BatchCreated"]
        pair.primary.kill()
        thaw(pair.standby.pid)
        pair.promote()

        with pytest.raises(DATABASE_ERRORS):
            early.result(60)
        assert order.result(60) == Answer("b1")
    announce()
    assert published == ["BatchCreated", "Allocated"]


@pytest.mark.parametrize("interruption", ["pg_terminate_backend", "pg_cancel_backend"])
def test_a_dead_letter_is_not_taken_as_stored_before_the_standby_has_it(
    pair: PostgresPair, app: MessagingApp, interruption: str
):
    """Its message would be acknowledged, and the letter lost with the primary."""
    freeze(pair.standby.pid)
    letters = app.runtime.dead_letters
    with ThreadPoolExecutor(1) as thread:
        stored = thread.submit(letters.add, DeadLetter("not a message", "is not JSON", b"raw"))
        [(session, _)] = eventually(lambda: pair.primary.ask(WAITING), what="the commit that waits")
        pair.primary.ask(f"SELECT {interruption}(%s)", session)

        with pytest.raises(sqlalchemy.exc.OperationalError):
            stored.result(20)
    thaw(pair.standby.pid)


def _run_tool(pair: PostgresPair, *arguments: str) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "allocation", *arguments],
        env={"ALLOCATION_DATABASE_URL": pair.url, "PATH": str(Path(sys.executable).parent)},
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.returncode == 0, result.stderr
