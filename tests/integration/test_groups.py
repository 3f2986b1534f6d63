"""Failed deliveries in groups that have the same cause, the record of actions, and tests made of failures."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from allocation.domain.events import OutOfStock
from local import ROOT
from messaging.errors import InvalidMessage
from messaging.fingerprints import blanked, fingerprint
from messaging.operator.deliveries import DeliveryQueries
from messaging.operator.reproduce import NotReproducible, test_of
from messaging.postgres.audit import UNDER_WAY
from messaging.postgres.filters import DeliveryFilter
from messaging.worker.app import MessagingApp
from tests.integration.outbox import app_on, ask, put, receive, refused, sent, state

test_of.__test__ = False  # type: ignore[attr-defined]  # it is no test


class PriceUnknown(Exception):
    """No price list has it."""


def price(sku: str) -> float:
    if sku.startswith("FREE"):
        return 1 / len(sku.removeprefix(sku))
    raise PriceUnknown(f"no price for {sku} in list 4711")


def quote(event: OutOfStock, _uow: Any) -> None:
    """Fail in one of two ways."""
    price(event.sku)


@pytest.fixture
def app(clean_database: str) -> Iterator[MessagingApp]:
    """An app whose handler always fails, once."""
    yield from app_on(clean_database, events={OutOfStock: [quote]}, event_max_retries=0)


def fail(app: MessagingApp, sku: str) -> str:
    """Let the delivery of an event fail; return its id."""
    delivery_id = put(app, handler="quote", status="pending", sku=sku)
    ask(app, "UPDATE deliveries SET attempts = 0 WHERE status = 'pending' RETURNING 1")
    receive(app, delivery_id, "quote")
    return delivery_id


def queries(app: MessagingApp) -> DeliveryQueries:
    return DeliveryQueries(app.runtime.engine)


@pytest.mark.parametrize(
    ("message", "blank"),
    [
        ("no price for 17 of 99", "no price for # of #"),
        ("id 01a20586-5162-7f44-b68f-9df892530fd4 is gone", "id # is gone"),
        ("<object at 0x7f3a> dead-beef decade deadbeef1", "<object at #> dead-beef decade #"),
        ("first line 1\nsecond", "first line #"),
        ("\ud800 5", "\\ud800 #"),
    ],
)
def test_numbers_and_ids_do_not_count(message: str, blank: str):
    assert blanked(message).replace("\\ud#", "\\ud800") == blank


def test_the_same_error_at_another_place_is_another_one():
    def raised(sku: str) -> BaseException:
        try:
            price(sku)
        except (PriceUnknown, ZeroDivisionError) as error:
            return error
        raise AssertionError("unreachable")

    assert fingerprint(raised("A1")) == fingerprint(raised("A22"))
    assert fingerprint(raised("A1")) != fingerprint(raised("FREE"))
    assert fingerprint(raised("A1")) != fingerprint(PriceUnknown("no price for A1 in list 4711"))


def test_failures_are_grouped_by_their_cause_the_largest_group_first(app: MessagingApp):
    first, second, third = fail(app, "LAMP-1"), fail(app, "LAMP-22"), fail(app, "FREE")
    old = put(app, handler="quote", error="PriceUnknown: of a release without groups 1")
    old_too = put(app, handler="quote", error="PriceUnknown: of a release without groups 2")
    put(app, handler="quote", status="done")

    groups = queries(app).groups(DeliveryFilter(), 10)

    assert [one.count for one in groups] == [2, 2, 1]
    by_error = {one.error: one for one in groups}
    prices = by_error["PriceUnknown: no price for LAMP-22 in list 4711"]
    assert (prices.handler, prices.example) == ("quote", second)
    assert prices.first < prices.last
    members = {one.id for one in queries(app).find(DeliveryFilter(group=prices.id))}
    assert members == {first, second}
    [division] = [one for one in groups if one.error.startswith("ZeroDivisionError")]
    assert division.example == third
    [older] = [one for one in groups if "without groups" in one.error]
    assert {one.id for one in queries(app).find(DeliveryFilter(group=older.id))} == {old, old_too}


def test_a_group_is_rerun_or_discarded_alone_and_both_are_recorded(app: MessagingApp):
    price_1, division = fail(app, "LAMP-1"), fail(app, "FREE")
    groups = {one.example: one.id for one in queries(app).groups(DeliveryFilter(), 10)}

    list(app.dispatcher.rerun(DeliveryFilter(group=groups[price_1]), "anna", 10))
    app.runtime.outbox.discard(DeliveryFilter(group=groups[division]), "bert", 10, "free of charge")

    assert sent(app) == [price_1]
    assert state(app, division) == "discarded"
    entries = app.runtime.audit.find(10)
    assert [(one.actor, one.action, one.subject, one.reason, one.count, one.outcome) for one in entries] == [
        ("bert", "discard", f"group={groups[division]}", "free of charge", 1, "done"),
        ("anna", "rerun", f"group={groups[price_1]}", None, 1, "done"),
    ]
    assert app.runtime.audit.find(10, actor="anna") == entries[1:]
    assert app.runtime.audit.find(10, before=entries[0].id) == entries[1:]


def test_an_interrupted_rerun_says_where_it_stood_and_outlives_the_deliveries(app: MessagingApp):
    for _ in range(5):
        put(app, handler="quote")
    turns = app.dispatcher.rerun(DeliveryFilter(), "anna", 5, rate=2, pause=lambda _seconds: None)
    next(turns)
    del turns
    ask(app, "DELETE FROM deliveries RETURNING 1")

    [entry] = app.runtime.audit.find(10)
    assert (entry.count, entry.outcome) == (2, UNDER_WAY)


def test_a_rerun_whose_program_dies_has_counted_what_it_requeued(app: MessagingApp):
    """Each turn is counted in the transaction that requeues it."""
    for _ in range(5):
        put(app, handler="quote")
    turns = app.dispatcher.rerun(DeliveryFilter(), "anna", 5, rate=2, pause=lambda _seconds: None)
    next(turns)

    with refused(app, "UPDATE audit"), pytest.raises(RuntimeError, match="refused"):
        next(turns)

    [entry] = app.runtime.audit.find(10)
    requeued = ask(app, "SELECT count(*) FROM deliveries WHERE status = 'pending'")
    assert requeued == [(entry.count,)] == [(2,)]
    assert entry.outcome == UNDER_WAY


def test_a_failure_becomes_a_test_that_fails_in_the_same_way(app: MessagingApp, tmp_path: Path):
    for sku, kind in (("LAMP-1", "PriceUnknown"), ("FREE", "ZeroDivisionError")):
        story = queries(app).story(fail(app, sku))
        assert story is not None
        project = replace(app.runtime.project, fakes="tests.fakes:FakeUnitOfWork")

        text = test_of(project, story.delivery, story.attempts[-1].traceback)

        file = tmp_path / f"test_{kind.lower()}.py"
        file.write_text(text)
        assert f"event = OutOfStock(sku={sku!r})" in text
        assert f"pytest.raises({kind}, match=" in text
        command = [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-p",
            "no:cacheprovider",
            "--rootdir",
            str(ROOT),
            str(file),
        ]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)
        assert "1 passed" in done.stdout, done.stdout


def test_a_delivery_of_another_release_or_without_fakes_is_not_reproduced(app: MessagingApp):
    story = queries(app).story(fail(app, "LAMP"))
    assert story is not None
    project = replace(app.runtime.project, fakes="tests.fakes:FakeUnitOfWork")

    with pytest.raises(NotReproducible, match="names no `fakes`"):
        test_of(replace(project, fakes=""), story.delivery, "")
    with pytest.raises(NotReproducible, match="This release has no handler gone"):
        test_of(project, replace(story.delivery, handler="gone"), "")
    with pytest.raises(InvalidMessage):
        test_of(project, replace(story.delivery, payload={}), "")
