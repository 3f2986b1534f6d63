"""Re-runs of many: a few first, progress, an end before time, and whatever dies meanwhile."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import text

from allocation.domain.events import OutOfStock
from local.waiting import eventually
from messaging.operator.pausing import Pausing
from messaging.operator.reruns import begin, listed
from messaging.postgres.filters import DeliveryFilter
from messaging.postgres.pauses import Scope
from messaging.postgres.reruns import NotUnderWay, WrongRerun
from messaging.worker import housekeeping
from messaging.worker.app import MessagingApp
from messaging.worker.rerunning import take_step
from tests.integration.outbox import app_on, ask, put, receive, rows_read, sent, state

HANDLER = "flaky_handler"

#: What the handler raises.
errors: list[Exception] = []


def flaky_handler(_event: OutOfStock, _uow: Any) -> None:
    """Fail while the test says so."""
    if errors:
        raise errors[-1]


@pytest.fixture
def app(clean_database: str) -> Iterator[MessagingApp]:
    """An app whose one handler fails at once and for good if at all."""
    errors.clear()
    yield from app_on(
        clean_database,
        events={OutOfStock: [flaky_handler]},
        event_max_retries=0,
        relay_grace_s=60,
        relay_grace_max_s=60,
    )


def failed(app: MessagingApp, count: int, **facts: Any) -> list[str]:
    return [put(app, handler=HANDLER, **facts) for _ in range(count)]


def deliver(app: MessagingApp) -> list[str]:
    """Have a worker take all messages; return their deliveries."""
    ids = sent(app)
    for delivery_id in ids:
        receive(app, delivery_id, HANDLER)
    return ids


def states(app: MessagingApp) -> dict[str, int]:
    return dict(ask(app, "SELECT status, count(*) FROM deliveries GROUP BY 1"))  # type: ignore[arg-type]


def audited(app: MessagingApp) -> tuple[Any, ...]:
    [row] = ask(app, "SELECT count, outcome FROM audit WHERE action = 'rerun'")
    return row


def test_the_others_follow_once_all_that_were_tried_first_have_succeeded(app: MessagingApp):
    failed(app, 10)

    begun = begin(app.dispatcher, DeliveryFilter(), "ann", canary=3)
    assert housekeeping.relay(app.dispatcher) == 0
    assert states(app) == {"failed": 7, "pending": 3}
    assert len(deliver(app)) == 3
    assert audited(app) == (3, "under way")

    assert housekeeping.relay(app.dispatcher) == 7
    assert audited(app) == (10, "done")
    assert len(deliver(app)) == 7
    assert states(app) == {"done": 10}
    with pytest.raises(NotUnderWay, match=f"Re-run {begun.id} has ended: done, 10 requeued"):
        app.runtime.bulk_reruns.stop(begun.id, "bob")


def test_the_others_are_left_alone_if_one_that_was_tried_first_fails(app: MessagingApp):
    failed(app, 10)
    begun = begin(app.dispatcher, DeliveryFilter(), "ann", canary=2)
    first, second = sent(app)
    receive(app, first, HANDLER)
    errors.append(RuntimeError("still broken"))
    receive(app, second, HANDLER)

    ended = take_step(app.dispatcher, begun.id)

    assert ended.outcome == "stopped: not all that were tried first succeeded (1 done, 1 failed)"
    assert audited(app) == (2, ended.outcome)
    assert states(app) == {"failed": 9, "done": 1}
    assert take_step(app.dispatcher, begun.id) == ended


def test_the_others_are_left_alone_if_the_first_take_too_long_but_not_if_nobody_looked(app: MessagingApp):
    failed(app, 4)
    late = begin(app.dispatcher, DeliveryFilter(), "ann", canary=1)
    ask(app, "UPDATE bulk_reruns SET canary_until = now() - interval '1 s' RETURNING 1")
    ended = take_step(app.dispatcher, late.id)
    assert ended.outcome == "stopped: not all that were tried first succeeded in time (1 pending)"
    deliver(app)

    seen_late = begin(app.dispatcher, DeliveryFilter(), "ann", canary=1)
    deliver(app)
    ask(app, "UPDATE bulk_reruns SET canary_until = now() - interval '1 h' RETURNING 1")
    assert take_step(app.dispatcher, seen_late.id).outcome == "done"


def test_none_are_tried_first_while_their_handler_is_paused_or_stopped(app: MessagingApp):
    failed(app, 3)
    Pausing(app.dispatcher).pause(Scope.HANDLER, HANDLER, "bob", "no mails now")

    with pytest.raises(WrongRerun, match=r"they would wait: flaky_handler, by bob .*no mails now. Resume it"):
        begin(app.dispatcher, DeliveryFilter(), "ann", canary=1)

    Pausing(app.dispatcher).resume(Scope.HANDLER, HANDLER, "bob")
    ask(
        app,
        "INSERT INTO breakers (handler, failures, since, until, last_error)"
        " VALUES (:name, 5, now(), now() + interval '1 min', 'no mail server') RETURNING 1",
        name=HANDLER,
    )
    with pytest.raises(WrongRerun, match=r"no mail server. Close its breaker before"):
        begin(app.dispatcher, DeliveryFilter(), "ann", canary=1)
    assert states(app) == {"failed": 3}
    assert ask(app, "SELECT DISTINCT action FROM audit ORDER BY 1") == [("pause",), ("resume",)]


#: A script re-runs one delivery after the other.
A_DAY_OF_SINGLES = """
INSERT INTO audit (actor, action, subject, count, outcome)
SELECT 'a script', 'rerun', 'ids=' || gen_random_uuid(), 1, 'done' FROM generate_series(1, 2000)
RETURNING 1"""


def test_reruns_of_single_deliveries_do_not_hide_how_one_of_many_has_ended(app: MessagingApp):
    first, second, *singles = failed(app, 8)
    begun = begin(app.dispatcher, DeliveryFilter(ids=(first, second)), "ann")
    take_step(app.dispatcher, begun.id)
    for one in singles:
        list(app.dispatcher.rerun(DeliveryFilter(ids=(one,)), "bob", 1))
    ask(app, A_DAY_OF_SINGLES)

    [line] = listed(app.runtime, 5)

    assert (line.id, line.count, line.state) == (begun.id, 2, "done")


def test_the_outcome_of_a_rerun_that_took_hours_is_listed(app: MessagingApp):
    failed(app, 2)
    begun = begin(app.dispatcher, DeliveryFilter(), "ann", rate=0.001)
    ask(app, "UPDATE audit SET at = now() - interval '3 hours' RETURNING 1")
    [line] = listed(app.runtime, 5)
    assert line.may_stop

    app.runtime.bulk_reruns.stop(begun.id, "bob")

    [line] = listed(app.runtime, 5)
    assert (line.id, line.state, line.may_stop) == (begun.id, "stopped by bob", False)


def test_a_long_rerun_is_paced_by_the_queue_and_stopped_by_anyone(app: MessagingApp):
    failed(app, 1000)
    begun = begin(app.dispatcher, DeliveryFilter(), "ann")

    housekeeping.relay(app.dispatcher)
    [line] = listed(app.runtime, 5)
    assert (line.count, line.expected, line.state, line.may_stop) == (400, 1000, "under way", True)
    assert take_step(app.dispatcher, begun.id).deliveries == []
    assert states(app) == {"failed": 600, "pending": 400}  # nobody takes them

    stopped = app.runtime.bulk_reruns.stop(begun.id, "bob")
    assert stopped.outcome == "stopped by bob"
    deliver(app)
    housekeeping.relay(app.dispatcher)
    assert states(app) == {"failed": 600, "done": 400}
    assert audited(app) == (400, "stopped by bob")


def test_a_rerun_with_a_rate_takes_no_more_than_that(app: MessagingApp):
    failed(app, 60)
    begun = begin(app.dispatcher, DeliveryFilter(), "ann", rate=10)

    ask(app, "UPDATE bulk_reruns SET paced_at = clock_timestamp() - interval '2 s' RETURNING 1")
    assert 20 <= len(take_step(app.dispatcher, begun.id).deliveries) <= 25
    assert len(take_step(app.dispatcher, begun.id).deliveries) < 5
    ask(app, "UPDATE bulk_reruns SET paced_at = now() - interval '1 h' RETURNING 1")
    assert take_step(app.dispatcher, begun.id).outcome == "done"


def test_many_processes_take_steps_of_the_same_rerun_and_each_delivery_is_requeued_once(app: MessagingApp):
    failed(app, 300)
    begun = begin(app.dispatcher, DeliveryFilter(), "ann")
    requeued: list[str] = []

    def go_on() -> None:
        while (progress := app.runtime.bulk_reruns.step(begun.id, 7)).is_under_way:
            requeued.extend(row.id for row in progress.deliveries)
        requeued.extend(row.id for row in progress.deliveries)

    threads = [threading.Thread(target=go_on) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    assert len(requeued) == len(set(requeued)) == 300
    assert ask(app, "SELECT DISTINCT reruns FROM deliveries") == [(1,)]
    assert audited(app) == (300, "done")


def test_a_rerun_and_a_discard_of_the_same_group_at_once_share_it(app: MessagingApp):
    failed(app, 600)
    begun = begin(app.dispatcher, DeliveryFilter(), "ann")
    gone: list[str] = []
    discard = threading.Thread(
        target=lambda: gone.extend(app.runtime.outbox.discard(DeliveryFilter(), "bob", 1000, "no"))
    )
    discard.start()
    while app.runtime.bulk_reruns.step(begun.id, 10).is_under_way:
        pass
    discard.join(60)

    found = states(app)
    assert found.get("pending", 0) == audited(app)[0]
    assert found.get("discarded", 0) == len(gone)
    assert sum(found.values()) == 600


def test_failures_after_the_beginning_are_left_alone(app: MessagingApp):
    failed(app, 5)
    errors.append(RuntimeError("again"))
    begin(app.dispatcher, DeliveryFilter(), "ann")
    for _ in range(3):
        housekeeping.relay(app.dispatcher)
        deliver(app)

    assert audited(app) == (5, "done")
    assert ask(app, "SELECT DISTINCT reruns, status FROM deliveries") == [(1, "failed")]


def test_an_age_is_that_at_the_beginning_however_long_a_rerun_takes(app: MessagingApp):
    """What was too young when it began is left alone."""
    failed(app, 1, age_s=90.0)
    young, outbox = failed(app, 2, age_s=0.0), app.runtime.outbox
    a_minute = DeliveryFilter(older_than_s=60)
    begun = begin(app.dispatcher, a_minute, "ann")
    before = app.runtime.bulk_reruns.under_way()[0].before
    ask(
        app,
        "UPDATE deliveries SET created_at = CAST(:before AS timestamptz) - interval '59.9 s'"
        " WHERE id = ANY(CAST(:ids AS uuid[])) RETURNING 1",
        ids=young, before=before,
    )  # fmt: skip
    eventually(lambda: outbox.clock() > before + timedelta(seconds=0.2), what="the time at which all are old")

    assert len(take_step(app.dispatcher, begun.id).deliveries) == 1
    assert outbox.rerun(a_minute, "ann", 10, before) == []
    assert {state(app, one) for one in young} == {"failed"}
    assert len(outbox.rerun(a_minute, "ann", 10)) == 2


@pytest.mark.parametrize("held", [1, 3])
def test_a_rerun_that_cannot_try_so_many_first_is_refused(app: MessagingApp, held: int):
    """While another operator's action holds some of them: the others must not go on without a trial."""
    ids = failed(app, 3)
    query = text("SELECT FROM deliveries WHERE id = ANY(CAST(:ids AS uuid[])) FOR UPDATE")
    with app.runtime.engine.begin() as other:
        other.execute(query, {"ids": ids[:held]})
        with pytest.raises(WrongRerun, match=f"{held} of the 3 .* changed just now: try again"):
            begin(app.dispatcher, DeliveryFilter(), "ann", canary=3)

    assert housekeeping.relay(app.dispatcher) == 0
    assert states(app) == {"failed": 3}
    assert ask(app, "SELECT FROM audit") == []
    begin(app.dispatcher, DeliveryFilter(), "ann", canary=3)
    assert states(app) == {"pending": 3}


def test_a_filter_of_a_newer_release_is_not_read_as_a_wider_one(app: MessagingApp):
    [one] = failed(app, 1)
    begun = begin(app.dispatcher, DeliveryFilter(handlers=(HANDLER,), older_than_s=1.5), "ann")
    ask(app, 'UPDATE bulk_reruns SET filter = filter || \'{"shop": "berlin"}\' RETURNING 1')

    assert housekeeping.relay(app.dispatcher) == 0
    assert state(app, one) == "failed"
    assert "cannot filter by shop" in listed(app.runtime, 5)[0].what
    app.runtime.bulk_reruns.stop(begun.id, "bob")


def test_a_filter_survives_being_stored(app: MessagingApp):
    now = app.runtime.outbox.clock()
    full = DeliveryFilter(
        (HANDLER, "older"), "OutOfStock", "x'\x00y", now, now, 2.5, "c", "0123456789", ("a", "b")
    )

    stored = DeliveryFilter.from_stored(full.stored)

    assert stored.sql == full.sql
    assert stored.facts == full.facts


def test_nothing_that_failed_is_a_rerun_that_has_ended(app: MessagingApp):
    begun = begin(app.dispatcher, DeliveryFilter(), "ann", canary=5)

    assert take_step(app.dispatcher, begun.id).outcome == "done"
    assert audited(app) == (0, "done")


MANY_FAILED = """
INSERT INTO deliveries (id, event_id, event_type, payload, handler, status, due_at, grace_s, correlation_id,
                        causation_id, finished_at, last_error)
SELECT gen_random_uuid(), gen_random_uuid(), 'OutOfStock', '{}', :handler, 'failed', now(), 1, 'c', 'c',
       now() - make_interval(secs => 100 + n), 'another error' FROM generate_series(1, 2000) n RETURNING 1"""


def test_each_step_looks_at_few_of_those_that_failed(app: MessagingApp, monkeypatch: pytest.MonkeyPatch):
    """Also if none of them matches, and it begins where the one before has ended."""
    monkeypatch.setattr("messaging.postgres.reruns.WINDOW", 100)
    monkeypatch.setattr("messaging.postgres.reruns.LOOK_FOR_S", 0.0)
    ask(app, MANY_FAILED, handler=HANDLER)
    [late] = failed(app, 1, error="TimeoutError: slow", age_s=10)
    [early] = failed(app, 1, error="TimeoutError: slow", age_s=5000)
    ask(app, "ANALYZE deliveries; SELECT 1")
    begun = begin(app.dispatcher, DeliveryFilter(error="slow"), "ann")
    steps: list[int] = []

    while audited(app)[1] == "under way" and len(steps) < 100:
        steps.append(rows_read(app, lambda: take_step(app.dispatcher, begun.id)))

    assert max(steps) < 1000
    assert len(steps) > 10
    assert audited(app) == (2, "done")
    assert sent(app) == [early, late]
