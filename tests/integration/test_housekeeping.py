"""Beat's tasks: relay, scheduled re-runs and pruning, any number of them at once."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Annotated, Any

import pytest
from sqlalchemy import text

from allocation.domain.events import OutOfStock
from local.waiting import eventually
from messaging.messages import Event, Text
from messaging.operator.deliveries import DeliveryQueries
from messaging.postgres.attempts import Attempt
from messaging.postgres.filters import DeliveryFilter
from messaging.postgres.pauses import Scope
from messaging.postgres.transaction import Transaction
from messaging.settings.rules import LONGEST_S
from messaging.worker.app import MessagingApp
from messaging.worker.housekeeping import prune, relay, rerun
from reliable_celery.checks import Limits, check_message
from tests.integration.outbox import app_on, ask, put, refused, rows_read, sent, state

DAY = 86400.0


@pytest.fixture
def app(clean_database: str) -> Iterator[MessagingApp]:
    """The backend's app; its schedule re-runs six deliveries at a time."""
    yield from app_on(
        clean_database, rerun_batch=6, rerun_max=3, rerun_cooldown_s=100, rerun_cooldown_max_s=1000
    )


def test_a_failed_delivery_is_rerun_once_its_cooldown_is_over(app: MessagingApp):
    cooled, hot = put(app, age_s=101), put(app, age_s=50)

    assert rerun(app.dispatcher) == 1

    assert (state(app, cooled), state(app, hot)) == ("pending", "failed")
    assert sent(app) == [cooled]
    assert ask(app, "SELECT delivery_id::text, action, actor FROM actions") == [(cooled, "rerun", "schedule")]


@pytest.mark.parametrize(("reruns", "cooldown_s"), [(0, 100), (1, 200), (2, 400)])
def test_the_cooldown_grows_with_each_rerun(app: MessagingApp, reruns: int, cooldown_s: int):
    hot = put(app, auto_reruns=reruns, age_s=cooldown_s - 10)
    cooled = put(app, auto_reruns=reruns, age_s=cooldown_s + 10)

    rerun(app.dispatcher)

    assert (state(app, hot), state(app, cooled)) == ("failed", "pending")


#: While another session holds the advisory lock, the schedule's statement waits where it finds cooled-down
#: rows: after its snapshot, before its row locks.
PAUSE = """
CREATE FUNCTION public.power(integer, integer) RETURNS double precision LANGUAGE plpgsql AS $$ BEGIN
    PERFORM pg_advisory_xact_lock_shared(42); RETURN power($1::double precision, $2::double precision);
END $$; SELECT 1"""


@pytest.fixture
def slow_schedule(app: MessagingApp) -> Iterator[Callable[[Callable[[], None]], None]]:
    """A function that runs an action in the middle of a scheduled re-run."""
    ask(app, PAUSE)

    def in_the_middle(meanwhile: Callable[[], None]) -> None:
        with app.runtime.engine.begin() as holder, ThreadPoolExecutor(1) as pool:
            holder.execute(text("SELECT pg_advisory_xact_lock(42)"))
            running = pool.submit(rerun, app.dispatcher)
            waiting = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND objid = 42 AND NOT granted"
            eventually(lambda: ask(app, waiting), 30, "the schedule to wait")
            meanwhile()
            holder.rollback()
            running.result(60)

    yield in_the_middle
    ask(app, "DROP FUNCTION public.power(integer, integer); SELECT 1")


def fail_again(app: MessagingApp, delivery_id: str) -> None:
    """Re-run a delivery as an operator, and let it fail again."""
    app.runtime.outbox.rerun(DeliveryFilter(ids=(delivery_id,)), "ann@desk", 1)
    ask(app, "UPDATE deliveries SET status = 'failed', finished_at = clock_timestamp() RETURNING 1")


def test_a_delivery_that_failed_again_meanwhile_cools_down_before_its_rerun(
    app: MessagingApp, slow_schedule: Callable[[Callable[[], None]], None]
):
    delivery_id = put(app, age_s=1000)

    slow_schedule(lambda: fail_again(app, delivery_id))

    assert state(app, delivery_id) == "failed"


def test_a_delivery_that_killed_its_workers_meanwhile_waits_for_an_operator(
    app: MessagingApp, slow_schedule: Callable[[Callable[[], None]], None]
):
    delivery_id = put(app, age_s=1000)
    crash = "UPDATE deliveries SET crashes = 3 RETURNING 1"

    slow_schedule(lambda: ask(app, crash) and None)

    assert state(app, delivery_id) == "failed"


def test_a_delivery_that_the_schedule_may_still_take_is_rerun(
    app: MessagingApp, slow_schedule: Callable[[Callable[[], None]], None]
):
    delivery_id = put(app, age_s=1000)

    slow_schedule(lambda: None)

    assert state(app, delivery_id) == "pending"


def test_the_schedule_gives_up_after_its_limit(app: MessagingApp):
    delivery_id = put(app, auto_reruns=3, age_s=DAY)

    assert rerun(app.dispatcher) == 0
    assert state(app, delivery_id) == "failed"


def test_a_flood_of_failures_is_rerun_in_small_batches(app: MessagingApp):
    for _ in range(40):
        put(app)

    assert rerun(app.dispatcher) == 6
    assert rerun(app.dispatcher) == 0  # those six are still in progress
    ask(
        app,
        "UPDATE deliveries SET status = 'waiting', waits_for = 'rate' WHERE status = 'pending' RETURNING 1",
    )
    assert rerun(app.dispatcher) == 0  # also while each waits for a time of its own
    ask(
        app, "UPDATE deliveries SET status = 'done', finished_at = now() WHERE status = 'waiting' RETURNING 1"
    )
    assert rerun(app.dispatcher) == 6


MANY_FAILED = """
INSERT INTO deliveries (id, event_id, event_type, payload, handler, status, auto_reruns, crashes,
                        due_at, grace_s, correlation_id, causation_id, finished_at)
SELECT gen_random_uuid(), gen_random_uuid(), 'OutOfStock', '{}', :handler, 'failed', :auto_reruns, :crashes,
       now(), 1, 'c', 'c', now() - make_interval(secs => :age_s) FROM generate_series(1, 5000) RETURNING 1"""


def test_the_schedule_reads_only_what_it_may_rerun(app: MessagingApp):
    usual = {"handler": "send_out_of_stock_notification", "auto_reruns": 0, "crashes": 0, "age_s": DAY}
    hot, given_up, crashed = {"auto_reruns": 1, "age_s": 60}, {"auto_reruns": 3}, {"crashes": 4}
    for odd in (hot, given_up, crashed, {"handler": "paused"}, {}):
        ask(app, MANY_FAILED, **{**usual, **odd})
    app.runtime.pauses.add(Scope.HANDLER, ["paused"], "ann", "a test")
    late = put(app, handler="reallocate", event_type="Deallocated", age_s=200)
    ask(app, "ANALYZE deliveries; SELECT 1")

    assert rows_read(app, lambda: rerun(app.dispatcher)) < 500

    assert state(app, late) == "pending"
    assert ask(app, "SELECT count(*) FROM deliveries WHERE status = 'pending'") == [(6,)]


def test_a_handler_that_always_fails_does_not_hold_up_others(app: MessagingApp):
    for _ in range(30):
        put(app, age_s=DAY)
    other = put(app, handler="reallocate", event_type="Deallocated", age_s=200)

    rerun(app.dispatcher)

    assert state(app, other) == "pending"
    late = put(app, handler="reallocate", event_type="Deallocated", age_s=200)
    rerun(app.dispatcher)
    assert state(app, late) == "pending"


def test_three_schedulers_and_three_relays_at_once_take_each_delivery_once(app: MessagingApp):
    failed = [put(app, age_s=500) for _ in range(6)]
    due = [put(app, status="pending", age_s=500) for _ in range(200)]

    with ThreadPoolExecutor(6) as pool:
        runs = [pool.submit(job, app.dispatcher) for job in (rerun, relay, rerun, relay, rerun, relay)]
        for run in runs:
            run.result(timeout=60)

    assert Counter(sent(app)) == Counter([*failed, *due])


def test_the_relay_sends_overdue_deliveries_and_doubles_their_grace(app: MessagingApp):
    delivery_id = put(app, status="pending")

    assert relay(app.dispatcher) == 1
    assert relay(app.dispatcher) == 0
    assert sent(app) == [delivery_id]
    assert ask(app, "SELECT grace_s, due_at > now() FROM deliveries") == [(2.0, True)]


def slow_down(monkeypatch: pytest.MonkeyPatch, app: MessagingApp, seconds: float) -> None:
    """Have each message take so long to be sent."""
    at_once = app.send_task

    def slowly(*args: Any, **options: Any) -> Any:
        time.sleep(seconds)
        return at_once(*args, **options)

    monkeypatch.setattr(app, "send_task", slowly)


def test_the_relay_ends_before_its_time_limit_however_slow_the_broker_is(
    clean_database: str, monkeypatch: pytest.MonkeyPatch
):
    for app in app_on(clean_database, task_time_limit_s=6, smtp_timeout_s=1):
        for _ in range(100):
            put(app, status="pending")
            put(app, status="waiting")
        slow_down(monkeypatch, app, 0.1)
        start = time.monotonic()

        some = relay(app.dispatcher)

        assert time.monotonic() - start < 6
        assert 0 < some < 200
        first = set(sent(app))
        finish = "UPDATE deliveries SET status = 'done', finished_at = now() WHERE id::text = ANY(:ids)"
        ask(app, f"{finish} RETURNING 1", ids=list(first))
        assert relay(app.dispatcher) > 0
        assert set(sent(app)) - first


def test_a_sender_waits_a_limited_time_for_the_deliveries_of_its_command_and_the_relay_sends_the_rest(
    clean_database: str, monkeypatch: pytest.MonkeyPatch
):
    """A correction may free very many lines: its worker would be killed before it had sent all of them."""
    for app in app_on(clean_database, task_time_limit_s=2, smtp_timeout_s=1):
        raised = [delivery for _ in range(40) for delivery in app.dispatcher.raise_event(OutOfStock("LAMP"))]
        sent(app)
        slow_down(monkeypatch, app, 0.05)
        start = time.monotonic()

        app.dispatcher.after_commit(raised)

        assert time.monotonic() - start < 2
        monkeypatch.undo()
        assert 0 < len(sent(app)) < len(raised)
        ask(app, "UPDATE deliveries SET due_at = now() RETURNING 1")
        assert relay(app.dispatcher) == len(raised)


def test_lost_messages_are_sent_although_what_waits_cannot_be_read(app: MessagingApp):
    lost = put(app, status="pending")

    with refused(app, "WITH RECURSIVE queues"), pytest.raises(RuntimeError, match="refused by the test"):
        relay(app.dispatcher)

    assert sent(app) == [lost]


def test_a_delivery_with_an_unknown_handler_fails_and_says_why(app: MessagingApp):
    unknown = put(app, handler="forgotten", status="pending")
    known = put(app, status="pending")

    relay(app.dispatcher)

    assert sent(app) == [known]
    [(status, error)] = ask(
        app, "SELECT status, last_error FROM deliveries WHERE id = CAST(:id AS uuid)", id=unknown
    )
    assert (status, error) == ("failed", "UnknownMessage: This release has no handler forgotten")


@dataclass(frozen=True)
class Unshowable(Event):
    """An event without a text."""

    sku: str

    def __repr__(self) -> str:
        raise RuntimeError("no text")


@dataclass(frozen=True)
class Unbuildable(Event):
    """An event that the current code refuses to build from its stored fields."""

    sku: str

    def __post_init__(self) -> None:
        raise TypeError("not like this")


@dataclass(frozen=True)
class Lengthy(Event):
    """An event with more text than fits into a header."""

    sku: Annotated[str, Text(max_length=1_000_000)]


def ignore(_event: Event, _uow: object) -> None:
    """Do nothing."""


@pytest.fixture
def odd_app(clean_database: str) -> Iterator[MessagingApp]:
    """The app with odd events added to the usual ones."""
    yield from app_on(clean_database, {kind: [ignore] for kind in (Unshowable, Unbuildable, Lengthy)})


@pytest.mark.parametrize("odd", ["Unshowable", "Unbuildable"])
def test_a_delivery_that_cannot_be_shown_does_not_hold_up_others(odd_app: MessagingApp, odd: str):
    ids = [
        put(odd_app, status="pending", age_s=60),
        put(odd_app, event_type=odd, handler="ignore", status="pending", age_s=50),
        put(odd_app, status="pending", age_s=40),
    ]

    assert relay(odd_app.dispatcher) == 3

    assert sorted(sent(odd_app)) == sorted(ids)


def test_a_delivery_that_another_copy_has_locked_does_not_hold_up_others(app: MessagingApp):
    unknown = put(app, handler="forgotten", status="pending")
    known = put(app, status="pending")
    due = app.runtime.outbox.take_due(10, 60)

    with app.runtime.engine.begin() as other:
        other.execute(text("SELECT FROM deliveries WHERE handler = 'forgotten' FOR UPDATE"))
        assert app.dispatcher.send_known(due) == 1

    assert sent(app) == [known]
    assert state(app, unknown) == "pending"


def test_the_relay_does_not_fail_a_delivery_that_was_rerun_meanwhile(app: MessagingApp):
    delivery_id = put(app, handler="forgotten", status="pending")
    due = app.runtime.outbox.take_due(10, 60)
    ask(app, "UPDATE deliveries SET reruns = reruns + 1, attempts = 0 RETURNING 1")

    app.dispatcher.send_known(due)

    assert state(app, delivery_id) == "pending"


def test_an_event_with_a_long_text_is_delivered(odd_app: MessagingApp):
    put(odd_app, event_type="Lengthy", handler="ignore", sku="x" * 100_000, status="pending")

    relay(odd_app.dispatcher)

    with odd_app.connection_for_read() as connection, connection.SimpleQueue("allocation.events") as queue:
        message = queue.get(timeout=10)
        message.ack()
    assert check_message(message, Limits()) == "allocation.ignore"
    assert message.headers["argsrepr"].startswith("Lengthy(sku='xxx")
    assert len(message.headers["argsrepr"]) <= 1_000


def test_a_renamed_handler_gets_the_deliveries_of_its_old_name(app: MessagingApp):
    delivery_id = put(app, handler="announce_to_the_team", status="pending")

    assert relay(app.dispatcher) == 1

    with app.connection_for_read() as connection, connection.SimpleQueue("allocation.events") as queue:
        message = queue.get(timeout=10)
        message.ack()
    assert message.headers["task"] == "allocation.send_out_of_stock_notification"
    assert message.headers["id"] == delivery_id


def test_a_message_names_its_original_command_and_shows_its_event(app: MessagingApp):
    put(app, status="pending", correlation="the-command")

    relay(app.dispatcher)

    with app.connection_for_read() as connection, connection.SimpleQueue("allocation.events") as queue:
        message = queue.get(timeout=10)
        message.ack()
    assert (message.headers["root_id"], message.headers["parent_id"]) == ("the-command", "the-command")
    assert message.headers["argsrepr"] == "OutOfStock(sku='LAMP')"


def test_old_rows_are_pruned_but_failed_deliveries_are_kept(app: MessagingApp):
    old_done, old_discarded = (
        put(app, status="done", age_s=8 * DAY),
        put(app, status="discarded", age_s=8 * DAY),
    )
    kept = [put(app, status="done"), put(app, age_s=900 * DAY), put(app, status="pending", age_s=900 * DAY)]

    assert prune(app.dispatcher) == 2

    left = {row[0] for row in ask(app, "SELECT id::text FROM deliveries")}
    assert left == set(kept)
    assert not left & {old_done, old_discarded}


MANY_DONE = """
WITH done AS (
    INSERT INTO deliveries (id, event_id, event_type, payload, handler, status, due_at, grace_s,
                            correlation_id, causation_id, finished_at)
    SELECT gen_random_uuid(), gen_random_uuid(), 'OutOfStock', '{}', 'h', 'done', now(), 1, 'c', 'c',
           now() - interval '8 days' FROM generate_series(1, :count) RETURNING id
), tried AS (
    INSERT INTO attempts (delivery_id, run, number, worker, error, traceback)
    SELECT id, 0, 1, 'w', 'e', 't' FROM done LIMIT 1000
), acted AS (
    INSERT INTO actions (delivery_id, action, actor) SELECT id, 'rerun', 'ann@desk' FROM done LIMIT 1000
)
SELECT count(*) FROM done"""

LEFT = """
SELECT (SELECT count(*) FROM deliveries), (SELECT count(*) FROM attempts), (SELECT count(*) FROM actions)"""


@pytest.fixture
def hurried_app(clean_database: str) -> Iterator[MessagingApp]:
    """The app with a time limit that leaves pruning a quarter of a second."""
    yield from app_on(clean_database, task_time_limit_s=1, smtp_timeout_s=0.5)


@pytest.mark.slow
def test_pruning_continues_until_no_old_rows_are_left_and_gives_other_jobs_their_turn(
    hurried_app: MessagingApp,
):
    """A run that does not finish in time requests another one."""
    app = hurried_app
    ask(app, MANY_DONE, count=105_000)

    gone = [prune(app.dispatcher)]
    while sent(app, "allocation.housekeeping"):
        gone.append(prune(app.dispatcher))

    assert len(gone) > 1
    assert sum(gone) == 105_000
    assert ask(app, LEFT) == [(0, 0, 0)]


def test_pruning_waits_for_no_lock(app: MessagingApp):
    held = put(app, status="done", age_s=8 * DAY)
    free = put(app, status="done", age_s=8 * DAY)

    with app.runtime.engine.begin() as other:
        other.execute(text("SELECT FROM deliveries WHERE id = CAST(:id AS uuid) FOR UPDATE"), {"id": held})
        assert prune(app.dispatcher) == 1

    assert ask(app, "SELECT id::text FROM deliveries") == [(held,)]
    assert free != held


def test_concurrent_prunings_share_the_work(app: MessagingApp):
    ask(app, MANY_DONE, count=10_000)

    with ThreadPoolExecutor(2) as pool:
        gone = [run.result(60) for run in [pool.submit(prune, app.dispatcher) for _ in "12"]]

    assert sum(gone) == 10_000
    assert ask(app, LEFT) == [(0, 0, 0)]


def test_open_attempts_are_deleted_with_their_run(app: MessagingApp):
    pending = put(app, status="pending")
    over = [put(app, status="pending"), put(app, status="done")]
    for delivery_id in (pending, *over):
        delivery = DeliveryQueries(app.runtime.engine).get(delivery_id)
        with Transaction(app.runtime.engine) as transaction:
            Attempt(app.runtime.engine, delivery_id, "worker", delivery=delivery).begin(transaction)
    ask(app, "UPDATE deliveries SET reruns = 1 WHERE id = CAST(:id AS uuid) RETURNING 1", id=over[0])

    assert prune(app.dispatcher) == 2

    assert ask(app, "SELECT delivery_id::text FROM open_attempts") == [(pending,)]


def test_every_job_leaves_its_heartbeat(app: MessagingApp):
    app.tasks["allocation.relay"].apply()

    beat = app.runtime.heartbeats.read()["relay"]
    assert 0 <= beat.age_s < 60
    assert abs(beat.clock_offset_s) < 5


def test_nothing_is_pruned_with_the_longest_retentions(clean_database: str):
    longest = {"done_retention_s": LONGEST_S, "inbox_retention_s": LONGEST_S}
    for app in app_on(clean_database, **longest, dead_letter_retention_s=LONGEST_S / 2):
        put(app, status="done", age_s=900 * DAY)

        assert prune(app.dispatcher) == 0


def test_answers_must_outlive_dead_letters(clean_database: str):
    with pytest.raises(ValueError, match="must outlive"):
        next(app_on(clean_database, inbox_retention_s=1.0))
