"""A handler that keeps failing is stopped after a handful of attempts, tried again, and let go on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from allocation.config import Settings
from allocation.domain.events import OutOfStock
from messaging.flower.metrics import DeliveryCollector
from messaging.operator.pausing import Pausing, WrongPause
from messaging.options import Breaker, HandlerOptions, Rate, handler
from messaging.postgres.pauses import Scope
from messaging.worker import housekeeping
from messaging.worker.app import MessagingApp
from tests.integration.outbox import app_on, ask, put, receive, sent, state

#: What the handler raises, if anything, and how often it was called.
errors: list[BaseException] = []
calls: list[str] = []
during: list[Callable[[], None]] = []


def fail_or_not(event: OutOfStock, _uow: Any) -> None:
    """Raise the test's error, if there is one."""
    calls.append(event.sku)
    while during:
        during.pop()()
    if errors:
        raise type(errors[-1])(*errors[-1].args)


def app_with(database_url: str, breaker: Breaker) -> Iterator[MessagingApp]:
    errors.clear()
    calls.clear()

    @handler(max_retries=5, breaker=breaker)
    def broken(event: OutOfStock, uow: Any) -> None:
        fail_or_not(event, uow)

    yield from app_on(database_url, events={OutOfStock: [broken]}, relay_grace_s=1, relay_interval_s=1)


@pytest.fixture
def app(clean_database: str) -> Iterator[MessagingApp]:
    """An app whose handler is stopped after three failures in a row."""
    yield from app_with(
        clean_database, Breaker(failures=3, pause_s=60, pause_max_s=200, ignore=(LookupError,))
    )


def pending(app: MessagingApp, count: int) -> list[str]:
    ids = [put(app, handler="broken", status="pending") for _ in range(count)]
    ask(app, "UPDATE deliveries SET attempts = 0 WHERE status = 'pending' RETURNING 1")
    return ids


def deliver(app: MessagingApp, ids: list[str]) -> None:
    for delivery_id in ids:
        receive(app, delivery_id, "broken")


def pause_of(app: MessagingApp) -> float | None:
    """Return the seconds for which the breaker is open; None if it is closed."""
    [row] = ask(app, "SELECT extract(epoch FROM until - clock_timestamp())::float FROM breakers")
    return row[0]  # type: ignore[no-any-return]


def end_pause(app: MessagingApp) -> None:
    ask(app, "UPDATE breakers SET until = clock_timestamp() - interval '1 ms' RETURNING 1")


def end_open_transactions(app: MessagingApp) -> None:
    """Terminate the handler's session, like a restart of the server."""
    ask(
        app,
        """SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity
        WHERE datname = current_database() AND state = 'idle in transaction'""",
    )


def test_after_some_failures_in_a_row_all_deliveries_wait_without_an_attempt(app: MessagingApp):
    errors.append(ConnectionRefusedError("no mail server"))
    ids = pending(app, 40)

    deliver(app, ids)
    deliver(app, ids)  # the retries of those that failed at first

    assert len(calls) == 3
    assert {state(app, one) for one in ids} == {"waiting"}
    assert ask(app, "SELECT sum(attempts) FROM deliveries") == [(3,)]
    stopped = app.runtime.breakers.stopped()["broken"]
    assert (stopped.failures, stopped.is_open) == (3, True)
    assert "ConnectionRefusedError: no mail server" in str(stopped)
    housekeeping.relay(app.dispatcher)
    assert sent(app) == []


def test_after_the_pause_one_is_tried_and_if_it_succeeds_all_others_go_on(app: MessagingApp):
    errors.append(ConnectionRefusedError("no mail server"))
    ids = pending(app, 10)
    deliver(app, ids)
    deliver(app, ids)  # the retries of those that failed at first
    errors.clear()
    end_pause(app)

    housekeeping.relay(app.dispatcher)
    tried = sent(app)
    assert len(tried) == 1
    deliver(app, tried)
    assert pause_of(app) is None
    assert sent(app, "allocation.housekeeping")
    housekeeping.relay(app.dispatcher)
    others = sent(app)
    deliver(app, others)

    assert sorted(tried + others) == sorted(ids)
    assert {state(app, one) for one in ids} == {"done"}


def test_a_failed_trial_doubles_the_pause_and_never_uses_up_the_last_attempt(app: MessagingApp):
    errors.append(ConnectionRefusedError("no mail server"))
    [*ids] = pending(app, 3)
    deliver(app, ids)
    deliver(app, ids)  # the retries of those that failed at first
    pauses = [pause_of(app)]
    for _ in range(8):
        end_pause(app)
        housekeeping.relay(app.dispatcher)
        tried = sent(app)
        assert len(tried) == 1
        deliver(app, tried)
        pauses.append(pause_of(app))

    assert [round(one or 0, -1) for one in pauses] == [60, 120, 200, 200, 200, 200, 200, 200, 200]
    assert {state(app, one) for one in ids} == {"waiting"}
    assert len(calls) == 3 + 8
    assert max(attempts for (attempts,) in ask(app, "SELECT attempts FROM deliveries")) < 6  # in turns


@pytest.mark.parametrize("closed_meanwhile", [False, True])
def test_a_trial_that_loses_its_session_does_not_use_up_the_last_attempt_either(
    app: MessagingApp, closed_meanwhile: bool
):
    """Its failure is noted beside the row, and counted when its delivery is claimed again."""
    errors.append(ConnectionRefusedError("no mail server"))
    ids = pending(app, 3)
    deliver(app, ids)
    deliver(app, ids)  # the retries of those that failed at first
    ask(app, "UPDATE deliveries SET attempts = 5 RETURNING 1")  # the next one is the last
    end_pause(app)
    housekeeping.relay(app.dispatcher)
    [tried] = sent(app)

    during.append(lambda: end_open_transactions(app))
    deliver(app, [tried])
    assert ask(app, "SELECT state, is_trial FROM open_attempts") == [("failed", True)]
    if closed_meanwhile:
        errors.clear()
        ask(app, "UPDATE breakers SET until = NULL RETURNING 1")
    deliver(app, [tried])

    assert state(app, tried) == ("done" if closed_meanwhile else "waiting")
    assert ask(app, "SELECT max(attempts) FROM deliveries") == [(7,)]


def test_a_success_or_an_excluded_error_opens_nothing(app: MessagingApp):
    errors.append(LookupError("a bug in one event"))
    deliver(app, pending(app, 10))
    assert app.runtime.breakers.stopped() == {}

    for _ in range(3):
        errors.append(OSError("once in a while"))
        deliver(app, pending(app, 2))
        errors.clear()
        deliver(app, pending(app, 1))

    assert app.runtime.breakers.stopped() == {}


def test_a_large_share_of_failures_within_the_window_opens_it(clean_database: str):
    breaker = Breaker(failures=100, share=0.5, at_least=10, window_s=60, pause_s=60, pause_max_s=60)
    for app in app_with(clean_database, breaker):
        for failing in (True, False, False) * 7:
            errors[:] = [OSError("x")] if failing else []
            deliver(app, pending(app, 1))
        assert app.runtime.breakers.stopped() == {}  # a third fails

        errors[:] = [OSError("x")]
        deliver(app, pending(app, 30))

        assert app.runtime.breakers.stopped()["broken"].is_open
        assert len(calls) < 21 + 15


def test_only_so_many_are_tried_at_once(app: MessagingApp):
    errors.append(OSError("x"))
    first, second, *_ = ids = pending(app, 6)
    deliver(app, ids)
    errors.clear()
    end_pause(app)
    ask(app, "UPDATE deliveries SET status = 'pending' RETURNING 1")

    during.append(lambda: deliver(app, [second]))
    deliver(app, [first])

    assert state(app, first) == "done"
    assert state(app, second) == "waiting"
    assert len(calls) == 4


def test_the_schedule_leaves_a_stopped_handlers_failures_alone(app: MessagingApp):
    errors.append(OSError("x"))
    failed = put(app, handler="broken", age_s=9000.0)
    deliver(app, pending(app, 5))

    housekeeping.rerun(app.dispatcher)
    assert state(app, failed) == "failed"
    end_pause(app)
    housekeeping.rerun(app.dispatcher)
    assert state(app, failed) == "pending"


def test_a_handler_without_a_breaker_any_more_sends_what_waited(app: MessagingApp, clean_database: str):
    def broken(_event: OutOfStock, _uow: Any) -> None:
        """Have no breaker."""

    errors.append(OSError("x"))
    ids = pending(app, 5)
    deliver(app, ids)
    deliver(app, ids)  # the retries of those that failed at first
    for next_release in app_on(clean_database, events={OutOfStock: [broken]}):
        housekeeping.relay(next_release.dispatcher)
        assert sorted(sent(next_release)) == sorted(ids)


def test_an_operator_closes_a_breaker_before_its_pause_is_over(app: MessagingApp):
    errors.append(OSError("x"))
    ids = pending(app, 6)
    deliver(app, ids)
    deliver(app, ids)
    pausing = Pausing(app.dispatcher)
    with pytest.raises(WrongPause, match="No handler is called 'brokn'; there are broken"):
        pausing.close("brokn", "ann")

    said = pausing.close("broken", "ann", "the mail server is back")

    assert said.startswith("The breaker of broken is closed; the relay sends what waits")
    assert sent(app, "allocation.housekeeping")
    errors.clear()
    housekeeping.relay(app.dispatcher)
    assert sorted(sent(app)) == sorted(ids)
    deliver(app, ids)
    assert {state(app, one) for one in ids} == {"done"}
    assert ask(app, "SELECT actor, action, subject, reason FROM audit") == [
        ("ann", "close", "breaker of broken", "the mail server is back")
    ]
    with pytest.raises(WrongPause, match="The breaker of broken has not stopped it"):
        pausing.close("broken", "ann")
    pausing.pause(Scope.HANDLER, "broken", "bob", "no mails")
    with pytest.raises(WrongPause, match=r"It is paused: broken, by bob.*use `resume`"):
        pausing.close("broken", "ann")


def test_metrics_say_what_waits_for_what_and_which_breakers_are_open(app: MessagingApp):
    collector = DeliveryCollector(app)

    def values(name: str) -> dict[tuple[str, ...], float]:
        collector.refresh()
        found = {metric.name: metric for metric in collector.collect()}[f"allocation_{name}"]
        return {tuple(sample.labels.values()): sample.value for sample in found.samples}

    assert values("breaker_open") == {("broken",): 0}
    assert values("deliveries_waiting") == {}
    errors.append(OSError("x"))
    ids = pending(app, 6)
    deliver(app, ids)
    deliver(app, ids)
    put(app, handler="broken", status="waiting")  # for a pause

    assert values("breaker_open") == {("broken",): 1}
    assert values("deliveries_waiting") == {("broken", "breaker"): 6, ("broken", "pause"): 1}


def test_a_closed_breaker_opens_again_if_the_failures_go_on(app: MessagingApp):
    errors.append(OSError("x"))
    deliver(app, pending(app, 4))
    Pausing(app.dispatcher).close("broken", "ann")

    deliver(app, pending(app, 10))

    assert len(calls) == 3 + 3
    assert round(pause_of(app) or 0, -1) == 60  # as the first time


def test_a_renamed_handlers_breaker_stays_open_and_is_closed_by_a_trial(
    app: MessagingApp, clean_database: str
):
    @handler(max_retries=5, breaker=Breaker(failures=3, pause_s=60, pause_max_s=200))
    def repaired(event: OutOfStock, uow: Any) -> None:
        fail_or_not(event, uow)

    errors.append(OSError("x"))
    ids = pending(app, 8)
    deliver(app, ids)
    errors.clear()

    renamed = {"broken": "repaired"}
    for release in app_on(clean_database, {OutOfStock: [repaired]}, renamed, relay_grace_s=1):
        later = put(release, handler="repaired", status="pending")
        receive(release, later, "repaired")
        assert state(release, later) == "waiting"
        housekeeping.relay(release.dispatcher)
        assert sent(release) == []

        end_pause(release)
        housekeeping.relay(release.dispatcher)
        tried = sent(release)
        assert tried
        receive(release, tried[0], "repaired")
        assert state(release, tried[0]) == "done"
        assert release.runtime.breakers.stopped() == {}
        assert len(calls) == 4


def test_what_a_breaker_leaves_open_the_settings_say():
    own = Settings(
        _env_file=None, breaker_failures=9, breaker_share=0.5, breaker_window_s=7, breaker_at_least=8,
        breaker_trials=4,
    )  # fmt: skip

    found = own.completed(HandlerOptions(breaker=Breaker(trials=2, window_s=1))).breaker

    assert found == Breaker(9, 0.5, 1, 8, 30, 600, 2)


@pytest.mark.parametrize(
    "wrong", [{"failures": 0}, {"pause_s": -1}, {"share": 1.5}, {"window_s": float("inf")}]
)
def test_numbers_that_make_no_sense_are_refused(wrong: dict[str, Any]):
    with pytest.raises(ValueError, match="greater than 0"):
        Breaker(**wrong)


@pytest.mark.parametrize("wrong", ["", "50", "0/s", "50/fortnight", "-1/s", "1.5/s"])
def test_a_rate_is_written_as_a_number_and_a_unit(wrong: str):
    assert Rate.parse("50/min").every_s == 1.2
    with pytest.raises(ValueError, match="is not a rate"):
        Rate.parse(wrong)
