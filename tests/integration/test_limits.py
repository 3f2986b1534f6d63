"""Limits of a handler or of each key of its events, and handlers that say when to be called again."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from celery.app.task import Context
from sqlalchemy import text

from allocation.domain.events import OutOfStock
from local import ROOT
from local.waiting import eventually
from messaging.errors import RetryAfter
from messaging.options import HandlerOptions, handler
from messaging.postgres.attempts import Attempt
from messaging.postgres.filters import DeliveryFilter
from messaging.postgres.limits import take_place
from messaging.postgres.pauses import Scope
from messaging.postgres.transaction import Transaction
from messaging.retry import RetryPolicy
from messaging.telemetry.work import Outcome, Watch, Work
from messaging.worker import events, housekeeping
from messaging.worker.app import MessagingApp
from messaging.worker.delivery_group import work_of
from messaging.worker.gates import attempt_at
from tests.integration.outbox import app_on, ask, put, receive, rows_read, sent, state

#: What happens while the handler runs, and how often it was called for each SKU.
during: list[Callable[[], None]] = []
calls: list[str] = []


def app_with(
    database_url: str,
    relay_interval_s: float = 1,
    database_shared_sessions: bool = False,
    **options: Any,
) -> Iterator[MessagingApp]:
    during.clear()
    calls.clear()

    @handler(max_retries=2, **options)
    def limited(event: OutOfStock, _uow: Any) -> None:
        calls.append(event.sku)
        if during:
            during.pop()()

    def unlimited(_event: OutOfStock, _uow: Any) -> None:
        calls.append("unlimited")

    yield from app_on(
        database_url,
        events={OutOfStock: [limited, unlimited]},
        relay_grace_s=30,
        relay_interval_s=relay_interval_s,
        database_shared_sessions=database_shared_sessions,
    )


def pending(app: MessagingApp, sku: str = "LAMP", of: str = "limited") -> str:
    delivery_id = put(app, handler=of, status="pending", sku=sku)
    ask(app, "UPDATE deliveries SET attempts = 0 WHERE id = CAST(:id AS uuid) RETURNING 1", id=delivery_id)
    return delivery_id


def deliver(app: MessagingApp, *ids: str) -> None:
    for delivery_id in ids:
        receive(app, delivery_id, "limited")


def waits_for(app: MessagingApp, delivery_id: str) -> tuple[str, float]:
    """Return what a delivery waits for, and for how many seconds."""
    [row] = ask(
        app,
        "SELECT waits_for, extract(epoch FROM due_at - clock_timestamp())::float FROM deliveries"
        " WHERE id = CAST(:id AS uuid) AND status = 'waiting' AND attempts = 0",
        id=delivery_id,
    )
    return row  # type: ignore[return-value]


def test_a_delivery_without_a_place_waits_and_the_next_free_place_is_its(clean_database: str):
    for app in app_with(clean_database, max_concurrent=2):
        first, second, third, other = *(pending(app) for _ in range(3)), pending(app, of="unlimited")

        def when_two_run(app: MessagingApp = app, third: str = third, other: str = other) -> None:
            deliver(app, third)
            assert waits_for(app, third)[0] == "place"
            receive(app, other, "unlimited")

        during.append(when_two_run)
        during.append(lambda app=app, second=second: deliver(app, second))  # type: ignore[misc]
        deliver(app, first)

        assert calls == ["LAMP", "LAMP", "unlimited"]
        assert [state(app, one) for one in (first, second, other)] == ["done"] * 3
        assert sent(app) == [third]  # by whoever left a place first
        deliver(app, third)
        assert state(app, third) == "done"


def test_each_key_has_places_of_its_own(clean_database: str):
    for app in app_with(clean_database, max_concurrent=1, limit_by="sku"):
        first, same, other = pending(app, "A"), pending(app, "A"), pending(app, "B")
        during.append(lambda app=app, same=same, other=other: deliver(app, same, other))  # type: ignore[misc]

        deliver(app, first)

        assert calls == ["A", "B"]
        assert sent(app) == [same]


def test_a_handler_that_fails_leaves_its_place_to_the_next(clean_database: str):
    def fail() -> None:
        raise RuntimeError("x")

    for app in app_with(clean_database, max_concurrent=1):
        first, second = pending(app), pending(app)
        during.append(fail)
        during.append(lambda app=app, second=second: deliver(app, second))  # type: ignore[misc]
        deliver(app, first)
        assert state(app, first) == "done"
        assert sent(app) == [second]

        third = pending(app)
        during.append(lambda app=app, third=third: (deliver(app, third), fail()))  # type: ignore[misc]
        deliver(app, second)
        assert sent(app) == [third]


HOLD_A_PLACE = """
import sys, time
from messaging.postgres.engine import connect
from messaging.postgres.limits import take_place
from messaging.postgres.transaction import Transaction
transaction = Transaction(connect(sys.argv[1], 30, 1))
transaction.open()
print(take_place(transaction, "limited:", 1), flush=True)
time.sleep(60)
"""


def test_a_killed_worker_leaves_its_place(clean_database: str):
    for app in app_with(clean_database, max_concurrent=1):
        with subprocess.Popen(
            [sys.executable, "-c", HOLD_A_PLACE, clean_database], cwd=ROOT, stdout=subprocess.PIPE, text=True
        ) as worker:
            assert worker.stdout is not None
            assert worker.stdout.readline() == "True\n"
            one = pending(app)
            deliver(app, one)
            assert waits_for(app, one)[0] == "place"
            worker.kill()

        def runs(app: MessagingApp = app, one: str = one) -> bool:
            housekeeping.relay(app.dispatcher)
            deliver(app, *sent(app))
            return state(app, one) == "done"

        assert eventually(runs, 20, "a free place", every=0.2)


def test_the_relay_wakes_those_whose_turn_was_forgotten(clean_database: str):
    for app in app_with(clean_database, max_concurrent=2):
        ids = [pending(app) for _ in range(5)]
        ask(app, "UPDATE deliveries SET status = 'waiting', waits_for = 'place', limit_key = '' RETURNING 1")

        housekeeping.relay(app.dispatcher)

        assert len(sent(app)) == 2
        assert sum(state(app, one) == "waiting" for one in ids) == 3


def pass_time(app: MessagingApp, seconds: float) -> None:
    """Let so many seconds pass for what waits and for the rates."""
    for change in (
        "UPDATE deliveries SET due_at = due_at - {} WHERE status = 'waiting' RETURNING 1",
        "UPDATE rates SET next_at = next_at - {0}, free_at = free_at - {0} RETURNING 1",
    ):
        ask(app, change.format("make_interval(secs => :seconds)"), seconds=seconds)


def test_whoever_leaves_a_place_reads_only_the_first_of_those_that_wait(clean_database: str):
    for app in app_with(clean_database, max_concurrent=2):
        first = put(app, handler="limited", status="waiting")
        ask(
            app,
            "INSERT INTO deliveries (id, event_id, event_type, payload, handler, status, waits_for, due_at,"
            " grace_s, correlation_id, causation_id)"
            " SELECT gen_random_uuid(), gen_random_uuid(), 'OutOfStock', '{\"sku\": \"LAMP\"}', 'limited',"
            " 'waiting', 'place', now() + interval '1 h', 1, 'c', 'c' FROM generate_series(1, 5000)"
            " RETURNING 1",
        )
        ask(app, "UPDATE deliveries SET waits_for = 'place', limit_key = '' RETURNING 1")
        ask(app, "ANALYZE deliveries; SELECT 1")
        woken: list[str] = []

        def leave(app: MessagingApp = app, woken: list[str] = woken) -> None:
            names = ("limited", "its_older_name")
            woken.extend(one.id for one in app.runtime.limits.wake_for_place(names, "", "limited:", 2))

        assert rows_read(app, leave) < 100
        assert woken == [first]


def test_deliveries_are_spread_over_time_and_take_their_time_once(clean_database: str):
    for app in app_with(clean_database, rate="6/min"):
        first, second, third = (pending(app) for _ in range(3))
        deliver(app, first, second, third)
        assert calls == ["LAMP"]
        assert waits_for(app, second) == ("rate", pytest.approx(10, abs=3))
        assert waits_for(app, third) == ("rate", pytest.approx(20, abs=3))

        pass_time(app, 11)
        housekeeping.relay(app.dispatcher)
        assert sent(app) == [second]
        deliver(app, second)
        assert calls == ["LAMP", "LAMP"]
        later = pending(app)
        deliver(app, later)
        assert waits_for(app, later) == ("rate", pytest.approx(19, abs=3))


def test_a_rate_is_kept_when_the_relay_was_away_while_times_passed(clean_database: str):
    for app in app_with(clean_database, rate="6/min"):
        deliver(app, *(pending(app) for _ in range(6)))
        assert calls == ["LAMP"]

        pass_time(app, 600)
        housekeeping.relay(app.dispatcher)
        again = sent(app)
        deliver(app, *again)

        assert len(again) == 5
        assert calls == ["LAMP"] * 2
        times = [waits_for(app, one)[1] for one in again[1:]]
        assert times == [pytest.approx(seconds, abs=5) for seconds in (10, 20, 30, 40)]


def test_a_rate_is_kept_when_copies_of_messages_arrive_before_their_time(clean_database: str):
    """The relay sends what has to wait up to an interval before its time, with a delay."""
    for app in app_with(clean_database, relay_interval_s=60, rate="6/min"):
        deliver(app, *(pending(app) for _ in range(6)))
        housekeeping.relay(app.dispatcher)
        woken = sent(app)

        deliver(app, *woken)

        assert len(woken) == 5
        assert calls == ["LAMP"]
        times = sorted(waits_for(app, one)[1] for one in woken)
        assert times == [pytest.approx(seconds, abs=5) for seconds in (10, 20, 30, 40, 50)]


def killed_attempt(app: MessagingApp, delivery_id: str) -> Attempt:
    """Have a worker die after it has begun an attempt; return that."""
    handler = app.runtime.project.bus.event_handlers["limited"]
    attempt = attempt_at(app.runtime, handler, delivery_id, "dead", redelivered=False)
    with Transaction(app.runtime.engine) as transaction:
        assert attempt.claim(transaction) is not None
    return attempt


def fail(app: MessagingApp, *, lose_sessions: bool) -> None:
    """Be a handler that fails, and whose transaction may be lost before."""
    ask(
        app,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE :lose AND datname = current_database() AND state = 'idle in transaction'",
        lose=lose_sessions,
    )
    raise RuntimeError("x")


@pytest.mark.parametrize("how", ["its worker died", "its transaction was lost", "it failed"])
def test_a_rate_is_kept_when_an_attempt_is_repeated_since(clean_database: str, how: str):
    for app in app_with(clean_database, rate="6/min"):
        first, second = pending(app), pending(app)
        deliver(app, first, second)
        pass_time(app, 11)
        housekeeping.relay(app.dispatcher)
        assert sent(app) == [second]
        if how == "its worker died":
            killed_attempt(app, second)
        else:
            lost = how == "its transaction was lost"
            during.append(lambda app=app, lost=lost: fail(app, lose_sessions=lost))  # type: ignore[misc]
            deliver(app, second)
        begun = len(calls)

        receive(app, second, "limited", redelivered=how == "its worker died")

        assert len(calls) == begun
        assert ask(app, "SELECT waits_for FROM deliveries WHERE status = 'waiting'") == [("rate",)]


def say_later() -> None:
    """Be a handler that is to be called again in ten seconds."""
    raise RetryAfter(10)


@pytest.mark.parametrize("why", ["rate", "time"])
def test_an_attempt_is_recorded_if_the_redelivered_message_before_it_had_to_wait(
    clean_database: str, why: str
):
    """What kills its workers would never be parked: the message that wakes it is not a redelivered one."""
    for app in app_with(clean_database, **({"rate": "6/min"} if why == "rate" else {})):
        one = pending(app)
        killed_attempt(app, one)

        during.append(say_later)
        receive(app, one, "limited", redelivered=True)

        assert waits_for(app, one)[0] == why
        pass_time(app, 11)
        housekeeping.relay(app.dispatcher)
        assert sent(app) == [one]
        assert killed_attempt(app, one).is_doubtful


def test_an_attempt_is_recorded_if_the_redelivered_message_before_it_came_while_it_waited(
    clean_database: str,
):
    """The relay's own message may come sooner than the broker's."""
    for app in app_with(clean_database, rate="6/min"):
        one = pending(app)
        killed_attempt(app, one)
        receive(app, one, "limited")

        receive(app, one, "limited", redelivered=True)

        assert waits_for(app, one)[0] == "rate"
        pass_time(app, 11)
        housekeeping.relay(app.dispatcher)
        assert killed_attempt(app, one).is_doubtful


def test_an_attempt_is_recorded_if_the_one_before_it_lost_its_place_as_it_began(clean_database: str):
    """Where sessions are shared, it commits its beginning, and whoever comes then may take the place."""
    for app in app_with(clean_database, max_concurrent=1, database_shared_sessions=True):
        one, engine = pending(app), app.runtime.engine
        killed_attempt(app, one)
        limited = app.runtime.project.bus.event_handlers["limited"]
        again = attempt_at(app.runtime, limited, one, "worker", redelivered=True)
        with Transaction(engine) as other, Transaction(engine) as transaction:
            assert again.claim(transaction) is not None
            commit = transaction.commit

            def lose_place(commit: Callable[[], None] = commit, other: Transaction = other) -> None:
                commit()
                take_place(other, "limited:", 1)

            transaction.commit = lose_place  # type: ignore[method-assign]
            assert not again.begin(transaction)

        assert waits_for(app, one)[0] == "place"
        housekeeping.relay(app.dispatcher)
        assert killed_attempt(app, one).is_doubtful


def test_a_release_without_the_rate_sends_at_once_what_waited_for_a_time(clean_database: str):
    for app in app_with(clean_database, rate="1/h"):
        first, *waiting = (pending(app) for _ in range(4))
        deliver(app, first, *waiting)
        housekeeping.relay(app.dispatcher)
        assert sent(app) == []

    for app in app_with(clean_database, max_concurrent=2):
        housekeeping.relay(app.dispatcher)
        assert sorted(sent(app)) == sorted(waiting)
        deliver(app, *waiting)

        assert {state(app, one) for one in waiting} == {"done"}


def test_the_recipe_gives_new_times_to_what_waits_when_a_rate_has_changed(clean_database: str):
    page = (ROOT / "docs/how-to/recipes.md").read_text()
    recipe = page.partition("## A new rate")[2].partition("```sql\n")[2].partition("```")[0]
    for app in app_with(clean_database, rate="1/h"):
        first, *waiting = (pending(app) for _ in range(4))
        deliver(app, first, *waiting)

    for app in app_with(clean_database, rate="1/min"):
        with app.runtime.engine.connect() as connection:
            connection.execute(text(recipe.replace("send_mail", "limited")))
        housekeeping.relay(app.dispatcher)
        deliver(app, *(again := sent(app)), later := pending(app))

        assert sorted(again) == sorted(waiting)
        assert state(app, again[0]) == "done"
        times = [waits_for(app, one)[1] for one in (*again[1:], later)]
        assert times == [pytest.approx(seconds, abs=30) for seconds in (60, 120, 180)]


def test_a_retry_takes_a_new_time(clean_database: str):
    def fail() -> None:
        raise RuntimeError("x")

    for app in app_with(clean_database, rate="1/h"):
        one = pending(app)
        during.append(fail)
        deliver(app, one)
        deliver(app, one)

        assert state(app, one) == "waiting"
        assert calls == ["LAMP"]


def test_each_key_has_times_of_its_own_which_are_pruned(clean_database: str):
    for app in app_with(clean_database, rate="1/h", limit_by="sku"):
        first, same, other = pending(app, "A"), pending(app, "A"), pending(app, "B")
        deliver(app, first, same, other)
        assert calls == ["A", "B"]
        assert state(app, same) == "waiting"

        ask(app, "UPDATE rates SET next_at = now() - interval '2 h' WHERE name = 'limited:A' RETURNING 1")
        housekeeping.prune(app.dispatcher)
        assert ask(app, "SELECT name FROM rates") == [("limited:B",)]


def test_many_at_once_never_get_the_same_time(clean_database: str):
    for app in app_with(clean_database, rate="3600/h"):
        ids = [pending(app) for _ in range(20)]
        threads = [threading.Thread(target=deliver, args=(app, *ids[n::4])) for n in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        due = [at for (at,) in ask(app, "SELECT due_at FROM deliveries WHERE status = 'waiting' ORDER BY 1")]

        assert len(calls) + len(due) == 20
        assert all((later - sooner).total_seconds() > 0.99 for sooner, later in pairwise(due))


@pytest.mark.parametrize("redelivered", [False, True])
def test_as_many_threads_as_a_worker_has_run_at_once(clean_database: str, redelivered: bool):
    """Each has a connection while its handler runs, and takes another one if it is redelivered."""
    threads = 25
    for app in app_with(clean_database, rate="999999999/s"):
        ids = [pending(app) for _ in range(threads)]
        everyone = threading.Barrier(threads)
        during.extend([lambda all_run=everyone: all_run.wait(10)] * threads)  # type: ignore[misc]

        with ThreadPoolExecutor(threads) as pool:
            received = [pool.submit(receive, app, one, "limited", redelivered=redelivered) for one in ids]

        assert [one.result() for one in received] == [None] * threads
        assert {state(app, one) for one in ids} == {"done"}


@pytest.mark.parametrize(
    ("when", "seconds"),
    [(90, 90), (timedelta(seconds=300), 300), (-5, 0), (1e12, RetryAfter.LONGEST_S)],
)
def test_a_handler_that_says_when_is_not_called_before_and_uses_up_no_attempt(
    clean_database: str, when: Any, seconds: float
):
    def later() -> None:
        raise RetryAfter(datetime.now(UTC) + when if isinstance(when, timedelta) else when)

    for app in app_with(clean_database):
        one = pending(app)
        during.append(later)

        assert receive(app, one, "limited") is None
        assert waits_for(app, one) == ("time", pytest.approx(seconds, abs=30))
        deliver(app, one)
        assert calls == ["LAMP"]

        ask(app, "UPDATE deliveries SET due_at = now() + interval '1 s' RETURNING 1")
        housekeeping.relay(app.dispatcher)
        assert sent(app) == [one]  # with a delay: it comes in time for the second
        deliver(app, one)
        assert state(app, one) == "done"


def test_what_was_only_looked_at_or_put_off_is_no_attempt_in_the_log_and_the_metrics(clean_database: str):
    def later() -> None:
        raise RetryAfter(0)

    for app in app_with(clean_database):
        one = pending(app)

        def followed(name: str = "limited", app: MessagingApp = app, one: str = one) -> Work:
            function = app.runtime.project.bus.event_handlers[name]
            attempt = attempt_at(app.runtime, function, one, "worker", redelivered=False)
            work = work_of(app.runtime, f"allocation.{name}", Context(), function, attempt)
            with Watch().over(work):
                events.deliver(app.runtime, function, RetryPolicy(), attempt)
            housekeeping.relay(app.dispatcher)
            return work

        mistaken = followed("unlimited")
        during.append(later)
        said_when = followed()
        app.runtime.pauses.add(Scope.HANDLER, ("limited",), "ann", "a test")
        app.runtime.pauses.forget()
        paused = followed()
        app.runtime.pauses.remove(Scope.HANDLER, ("limited",), "ann", None)
        app.runtime.pauses.forget()
        housekeeping.relay(app.dispatcher)
        ran = followed()

        for put_off in mistaken, said_when, paused:
            assert (put_off.outcome, put_off.waited_s) == (Outcome.SKIPPED, None)
        assert (ran.outcome, ran.waited_s) == (Outcome.DONE, pytest.approx(3600, abs=60))


def test_a_redelivered_message_that_has_to_wait_does_not_count_as_a_crash(clean_database: str):
    def later() -> None:
        raise RetryAfter(0)

    for app in app_with(clean_database):
        one = pending(app)
        for _ in range(5):
            during.append(later)
            receive(app, one, "limited", redelivered=True)
            housekeeping.relay(app.dispatcher)
            sent(app)
        receive(app, one, "limited", redelivered=True)

        assert state(app, one) == "done"


@pytest.mark.parametrize("when", [float("nan"), datetime(2026, 1, 1), "soon"])  # noqa: DTZ001
def test_a_time_that_is_none_is_an_error_of_the_handler(when: Any):
    with pytest.raises(ValueError, match=r"time zone|number|could not convert"):
        RetryAfter(when)


@pytest.mark.parametrize("wrong", [{"rate": "often"}, {"max_concurrent": 0}, {"limit_by": "sku"}])
def test_limits_that_make_no_sense_are_refused(wrong: dict[str, Any]):
    with pytest.raises(ValueError, match=r"is not a rate|at least 1|needs max_concurrent"):
        HandlerOptions(**wrong)


MANY_WAIT = """
INSERT INTO deliveries (id, event_id, event_type, payload, handler, status, waits_for, due_at, grace_s,
                        correlation_id, causation_id)
SELECT gen_random_uuid(), gen_random_uuid(), 'OutOfStock', '{"sku": "LAMP"}', 'unlimited', 'waiting', 'pause',
       now(), 1, 'c', 'c' FROM generate_series(1, 2000) RETURNING 1"""


def test_the_relay_does_not_fill_the_queue_with_what_waited(clean_database: str):
    for app in app_with(clean_database):
        ask(app, MANY_WAIT)
        began = time.monotonic()
        housekeeping.relay(app.dispatcher)

        assert time.monotonic() - began < 20
        assert len(sent(app)) <= 450
        assert sent(app, "allocation.housekeeping")  # it continues in another run


def test_the_relay_ends_before_a_small_time_limit_although_much_waits_and_is_rerun(clean_database: str):
    for app in app_on(clean_database, task_time_limit_s=4, smtp_timeout_s=2):
        ask(app, MANY_WAIT.replace("'unlimited'", "'send_out_of_stock_notification'"))
        put(app)
        app.runtime.bulk_reruns.start(DeliveryFilter(), "ann")

        began = time.monotonic()
        housekeeping.relay(app.dispatcher)

        assert time.monotonic() - began < 4
