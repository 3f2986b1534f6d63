"""An operator's queries about deliveries, and actions on failed ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from datetime import timedelta
from typing import Any

import pytest

from allocation.domain.events import OutOfStock
from messaging.delivery import Status
from messaging.errors import InvalidMessage
from messaging.operator.deliveries import DeliveryQueries
from messaging.operator.order import story_of
from messaging.operator.reruns import outcome
from messaging.operator.stats import Statistics
from messaging.postgres.filters import DeliveryFilter
from messaging.postgres.outbox import NotFailed
from messaging.worker import housekeeping
from messaging.worker.app import MessagingApp
from tests.integration.outbox import app_on, ask, put, sent, state


@pytest.fixture
def app(clean_database: str) -> Iterator[MessagingApp]:
    """The backend's app over an empty database."""
    yield from app_on(clean_database)


@pytest.fixture
def find(app: MessagingApp) -> Callable[..., list[str]]:
    """`find(handlers=…)` returns the ids of the failed deliveries that match."""

    def ids(**options: object) -> list[str]:
        found = DeliveryQueries(app.runtime.engine).find(DeliveryFilter(**options), [Status.FAILED])  # type: ignore[arg-type]
        return [row.id for row in found]

    return ids


def test_a_large_rerun_does_not_delay_what_happens_now(app: MessagingApp):
    first = put(app)
    ask(
        app,
        "INSERT INTO deliveries (id, event_id, event_type, payload, handler, status, due_at, grace_s,"
        " correlation_id, causation_id, finished_at) SELECT gen_random_uuid(), gen_random_uuid(), event_type,"
        " payload, handler, status, now(), 30, 'c', 'c', now() FROM deliveries, generate_series(1, 1000)"
        " RETURNING 1",
    )

    said = outcome(list(app.dispatcher.rerun(DeliveryFilter(), "ann", 2000)))

    assert said.startswith(
        "1,001 requeued, 400 of them sent. The relay sends 601 as fast as workers take them"
    )
    housekeeping.relay(app.dispatcher)
    before = sent(app)  # what a new event's message has before it
    assert len(before) <= 400
    ask(
        app, "UPDATE deliveries SET status = 'done', finished_at = now() WHERE status = 'pending' RETURNING 1"
    )
    housekeeping.relay(app.dispatcher)
    assert 0 < len(sent(app)) <= 450
    assert first in before


def turns(
    app: MessagingApp, chosen: DeliveryFilter, actor: str = "test", limit: int = 100, **pace: Any
) -> list[int]:
    """Re-run the chosen deliveries; return how many each batch requeued."""
    return [len(turn.deliveries) for turn in app.dispatcher.rerun(chosen, actor, limit, **pace)]


def test_each_filter_selects_its_matches(app: MessagingApp, find: Callable[..., list[str]]):
    odd = put(
        app,
        handler="reallocate",
        event_type="Deallocated",
        correlation="odd",
        age_s=7200,
        error="KeyError: 'Ü'",
    )
    usual = put(app)
    hour_ago = app.runtime.outbox.clock() - timedelta(seconds=5400)

    assert find() == [usual, odd]
    assert find(handlers=("reallocate",)) == [odd]
    assert find(event="Deallocated") == [odd]
    assert find(error="keyerror: 'ü'") == [odd]
    assert find(error="100%_") == []
    assert find(until=hour_ago) == [odd]
    assert find(since=hour_ago) == [usual]
    assert find(older_than_s=5400) == [odd]
    assert find(correlation="odd") == [odd]
    assert find(ids=(odd,)) == [odd]
    assert find(handlers=("reallocate",), correlation="command") == []


def test_all_states_are_listed_together_latest_end_first(app: MessagingApp):
    ids = [
        put(app, status=status, age_s=age) for status, age in zip(Status, (10, 20, 30, 40, 50), strict=True)
    ]

    found = DeliveryQueries(app.runtime.engine).find(DeliveryFilter())

    assert [row.id for row in found] == ids
    assert [row.status for row in found] == list(Status)


def test_a_rerun_takes_only_failed_deliveries_and_each_once(app: MessagingApp):
    states = {status: put(app, status=status) for status in Status}

    assert turns(app, DeliveryFilter(), "ann@desk") == [1]
    assert turns(app, DeliveryFilter(), "ann@desk") == []

    assert sent(app) == [states[Status.FAILED]]
    assert state(app, states[Status.DONE]) == "done"
    assert state(app, states[Status.DISCARDED]) == "discarded"
    assert ask(app, "SELECT delivery_id::text, actor FROM actions") == [(states[Status.FAILED], "ann@desk")]


def test_filters_come_before_the_limit_and_the_oldest_failures_first(app: MessagingApp):
    for age in range(20):
        put(app, age_s=1000 + age)
    wanted = [put(app, handler="reallocate", event_type="Deallocated", age_s=age) for age in (30, 20, 10)]

    turns(app, DeliveryFilter(handlers=("reallocate",)), limit=2)

    assert [state(app, delivery_id) for delivery_id in wanted] == ["pending", "pending", "failed"]


def test_a_delivery_that_fails_again_during_a_rerun_is_not_taken_twice(app: MessagingApp):
    delivery_id = put(app)
    reruns = app.dispatcher.rerun(DeliveryFilter(), "test", 100_000, rate=1)

    next(reruns)
    app.runtime.outbox.give_up(delivery_id, "worker", ValueError("again"))

    assert list(reruns) == []
    assert state(app, delivery_id) == "failed"


def test_a_rate_spreads_the_load(app: MessagingApp):
    for _ in range(25):
        put(app)
    pauses: list[float] = []

    taken = turns(app, DeliveryFilter(), rate=10, pause=pauses.append)

    assert taken == [10, 10, 5]
    assert len(pauses) == 2
    assert all(0 < pause <= 1 for pause in pauses)


def test_two_operators_with_the_same_filter_share_the_work(app: MessagingApp):
    ids = {put(app) for _ in range(300)}

    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(lambda: sum(turns(app, DeliveryFilter(), limit=1000))) for _ in "12"]
        taken = [run.result(timeout=60) for run in runs]

    assert sum(taken) == 300
    messages = sent(app)
    assert len(messages) == 300
    assert set(messages) == ids


def test_an_operators_rerun_gives_new_attempts_and_keeps_the_history(app: MessagingApp):
    delivery_id = put(app, status="pending")
    app.runtime.outbox.give_up(delivery_id, "w1", ValueError("first"))
    turns(app, DeliveryFilter(ids=(delivery_id,)))
    app.runtime.outbox.give_up(delivery_id, "w2", ValueError("second"))

    story = DeliveryQueries(app.runtime.engine).story(delivery_id)

    assert story is not None
    assert [(a.run, a.worker, a.error) for a in story.attempts] == [
        (0, "w1", "ValueError: first"),
        (1, "w2", "ValueError: second"),
    ]
    assert [action.action for action in story.actions] == ["rerun"]
    assert story.delivery.reruns == 1


def test_a_story_shows_the_original_command_and_its_other_deliveries(app: MessagingApp):
    ask(app, "INSERT INTO inbox (task_id, command, result) VALUES ('c1', 'Allocate()', '\"b1\"') RETURNING 1")
    first, sister = put(app, correlation="c1"), put(app, correlation="c1", status="done")
    second = put(app, correlation="c1")
    ask(
        app,
        "UPDATE deliveries SET causation_id = :a WHERE id = CAST(:b AS uuid) RETURNING 1",
        a=first,
        b=second,
    )

    story = DeliveryQueries(app.runtime.engine).story(second)

    assert story is not None
    assert story.cause is not None
    assert (story.cause.task_id, story.cause.command, story.cause.result) == ("c1", "Allocate()", "b1")
    assert [row.id for row in story.through] == [first]
    assert {row.id for row in story.related} == {first, sister}


def test_a_corrected_copy_is_validated_and_recorded(app: MessagingApp):
    delivery_id, outbox = put(app), app.runtime.outbox

    with pytest.raises(InvalidMessage, match="colour is not a field"):
        outbox.edit(delivery_id, OutOfStock, {"colour": "red"}, "ann@desk")
    copy = outbox.edit(delivery_id, OutOfStock, {"sku": "LAMP-2"}, "ann@desk")

    assert repr(copy.event) == "OutOfStock(sku='LAMP-2')"
    found = DeliveryQueries(app.runtime.engine).get(copy.id)
    assert found is not None
    assert (found.edited_from, found.status, found.payload) == (
        delivery_id,
        Status.PENDING,
        {"sku": "LAMP-2"},
    )
    old = DeliveryQueries(app.runtime.engine).get(delivery_id)
    assert old is not None
    assert old.status is Status.DISCARDED
    assert copy.id in (old.reason or "")
    with pytest.raises(NotFailed, match="is discarded"):
        outbox.edit(delivery_id, OutOfStock, {"sku": "LAMP-3"}, "ann@desk")


def test_a_delivery_of_an_older_release_can_be_corrected(app: MessagingApp):
    """It can be re-run although it has a field that this release lacks, so it can be edited as well."""
    delivery_id = put(app)
    ask(app, """UPDATE deliveries SET payload = '{"sku": "LAMP", "shelf": 3}' RETURNING 1""")
    outbox = app.runtime.outbox

    with pytest.raises(InvalidMessage, match="shelf is not a field"):
        outbox.edit(delivery_id, OutOfStock, {"shelf": 4}, "ann@desk")
    copy = outbox.edit(delivery_id, OutOfStock, {"sku": "LAMP-2"}, "ann@desk")

    assert repr(copy.event) == "OutOfStock(sku='LAMP-2')"
    assert copy.payload == {"sku": "LAMP-2"}


def test_a_story_is_shown_whatever_id_a_sender_gave_its_command(app: MessagingApp):
    """The answer is pruned long before a failed delivery, and the id may be as long as a delivery's."""
    delivery_id = put(app, correlation="order-4711-of-customer-0000000000815")

    story = DeliveryQueries(app.runtime.engine).story(delivery_id)

    assert story is not None
    assert (story.cause, story.through) == (None, [])


def test_the_story_of_events_that_raise_each_other_for_ever_is_told_to_some_depth(app: MessagingApp):
    ask(
        app,
        "INSERT INTO deliveries (id, event_id, event_type, payload, handler, status, due_at, grace_s,"
        " correlation_id, causation_id, finished_at) SELECT CAST(lpad(n::text, 32, '0') AS uuid),"
        " gen_random_uuid(), 'OutOfStock', '{\"sku\": \"LAMP\"}', 'reallocate', 'done', now(), 15, 'loop',"
        " CASE n WHEN 1 THEN 'loop' ELSE CAST(lpad((n - 1)::text, 32, '0') AS uuid)::text END, now()"
        " FROM generate_series(1, 300) n RETURNING 1",
    )

    story = story_of(app.runtime, "loop")

    assert story is not None
    assert asdict(story)
    [step] = story.steps
    while step.steps:
        step = step.steps[-1]
    assert (step.what, step.state) == ("OutOfStock, and what that led to", "not shown")


def test_an_overview_counts_states_failures_and_reruns(app: MessagingApp):
    put(app)
    put(app, status="done")
    put(app, status="pending", age_s=600)
    turns(app, DeliveryFilter(), limit=1)

    found = Statistics.of(app.runtime).overview()

    handler = "send_out_of_stock_notification"
    assert found.deliveries == {("pending", handler): 2, ("done", handler): 1}
    assert found.reruns == {"operator": 1}


def test_a_delivery_counts_as_pending_since_its_rerun_and_not_since_its_event(app: MessagingApp):
    """Somebody is woken up if one is pending for long: no worker takes it, or too few do."""
    statistics, waited_s = Statistics.of(app.runtime), 0.0
    put(app, age_s=10_800)
    turns(app, DeliveryFilter(), limit=1)
    assert statistics.open().oldest_pending_s < 60

    while waited_s < 900:  # the relay sends it again and again, and time passes
        passed = "UPDATE deliveries SET due_at = due_at - make_interval(secs => grace_s) RETURNING grace_s"
        waited_s += float(str(ask(app, passed)[0][0]))
        assert statistics.summary().oldest_pending_s == pytest.approx(waited_s, abs=60)
        assert len(app.runtime.outbox.take_due(1, app.runtime.settings.relay_grace_max_s)) == 1

    assert statistics.open().oldest_pending_s > 900


def test_a_rerun_reports_nothing_as_sent_while_the_broker_is_unavailable(
    clean_database: str, free_port: int, caplog: pytest.LogCaptureFixture
):
    """It also gives up at the first delivery: each attempt takes seconds, and there may be hundreds."""
    for app in app_on(clean_database):
        app.conf.update(broker_url=f"redis://127.0.0.1:{free_port}/0")
        ids = [put(app) for _ in range(5)]

        said = outcome(list(app.dispatcher.rerun(DeliveryFilter(), "ann@desk", 100)))

        assert said.startswith("5 requeued, 0 of them sent. The relay will send the rest")
        assert {state(app, delivery_id) for delivery_id in ids} == {"pending"}
        assert [record.message for record in caplog.records if "broker is lost" in record.message] != []
        assert [record.message for record in caplog.records if "could not be sent" in record.message] == []


def test_a_rerun_reports_nothing_as_sent_to_a_missing_handler(app: MessagingApp):
    put(app, handler="gone")

    said = outcome(list(app.dispatcher.rerun(DeliveryFilter(), "ann@desk", 100)))

    assert said.startswith("1 requeued, 0 of them sent.")
    assert "whose handler this release lacks have failed again" in said
