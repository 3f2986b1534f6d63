"""A million done deliveries do not slow down the others: every query has its own index."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import median
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, event, text

from messaging.delivery import Status
from messaging.operator.deliveries import DeliveryQueries
from messaging.operator.stats import Statistics
from messaging.postgres.filters import DeliveryFilter
from messaging.postgres.outbox import Outbox

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

FILL = """
INSERT INTO deliveries (id, event_id, event_type, payload, handler, status, attempts, due_at, grace_s,
                        correlation_id, causation_id, created_at, finished_at, last_error)
SELECT CAST('{first}0000000-0000-7000-8000-' || lpad(to_hex(n), 12, '0') AS uuid), gen_random_uuid(),
       'OutOfStock', '{{"sku": "LAMP"}}', 'send_out_of_stock_notification', '{status}', 1,
       now() - interval '1 hour', 15, 'c' || n, 'c' || n, now() - interval '1 hour',
       CASE WHEN '{status}' <> 'pending' THEN now() - n * interval '3 milliseconds' END, 'an error'
FROM generate_series(1, {count}) n"""


@dataclass(frozen=True)
class Table:
    """A table of deliveries, of which `done` are done."""

    engine: Engine
    done: int

    def plans(self, question: Callable[[], object]) -> list[str]:
        """Return PostgreSQL's plan for each statement of a query."""
        asked: list[tuple[str, Any]] = []

        def note(_connection: Any, _cursor: Any, statement: str, values: Any, *_rest: Any) -> None:
            asked.append((statement, values))

        event.listen(self.engine, "before_cursor_execute", note)
        question()
        event.remove(self.engine, "before_cursor_execute", note)
        with self.engine.connect() as connection:
            return [
                "\n".join(row[0] for row in connection.exec_driver_sql(f"EXPLAIN {statement}", values))
                for statement, values in asked
                if " deliveries" in statement
            ]


@pytest.fixture(scope="module", params=[0, 1_000_000], ids=["none done", "a million done"])
def table(request: pytest.FixtureRequest, new_database: Callable[[], str]) -> Iterator[Table]:
    """1,000 failed and 1,000 pending deliveries, with none or a million done ones."""
    engine = create_engine(new_database())
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for first, (status, count) in enumerate(
            (("done", request.param), ("failed", 1000), ("pending", 1000))
        ):
            connection.execute(text(FILL.format(status=status, count=count, first=first)))
        connection.execute(text("VACUUM ANALYZE deliveries"))
    yield Table(engine, request.param)
    engine.dispose()


USUAL = DeliveryFilter(event="OutOfStock", error="AN ERR")

QUESTIONS: dict[str, tuple[Callable[[Engine], object], str]] = {
    "list": (
        lambda engine: DeliveryQueries(engine).find(DeliveryFilter(), [Status.FAILED]),
        "deliveries_failed",
    ),
    "list some": (lambda engine: DeliveryQueries(engine).find(USUAL, [Status.FAILED]), "deliveries_failed"),
    "list all": (lambda engine: DeliveryQueries(engine).find(DeliveryFilter()), "deliveries_pkey"),
    "dry run": (lambda engine: DeliveryQueries(engine).count_failed(USUAL), "deliveries_failed"),
    "a command's": (
        lambda engine: DeliveryQueries(engine).find(DeliveryFilter(correlation="c7")),
        "deliveries_correlation",
    ),
    "metrics": (lambda engine: Statistics(engine, 15, 600).open(), "deliveries_pending"),
    "relay": (lambda engine: Outbox(engine).take_due(1, 600), "deliveries_pending"),
    "schedule": (lambda engine: Outbox(engine).rerun_cooled(1, 5, 60, 600), "deliveries_failed"),
    "rerun": (lambda engine: put_back_one(Outbox(engine)), "deliveries_failed"),
    "prune": (lambda engine: Outbox(engine).prune(7 * 86400), "deliveries_ended"),
}


def put_back_one(outbox: Outbox) -> None:
    """Re-run the oldest failed delivery."""
    outbox.rerun(DeliveryFilter(), "test", 1, outbox.clock())


MEDIANS: dict[tuple[str, int], float] = {}  # seconds, by query and number of done deliveries


@pytest.mark.parametrize("name", QUESTIONS)
def test_each_query_uses_its_index(table: Table, name: str):
    ask, index = QUESTIONS[name]

    plans = table.plans(lambda: ask(table.engine))

    assert plans
    if table.done:
        assert index in "\n".join(plans)
        assert "Seq Scan on deliveries" not in "\n".join(plans)


@pytest.mark.parametrize("name", QUESTIONS)
def test_each_query_takes_the_same_time_with_a_million_done_deliveries(table: Table, name: str):
    ask, _ = QUESTIONS[name]
    times = []
    for _ in range(15):
        began = time.perf_counter()
        ask(table.engine)
        times.append(time.perf_counter() - began)

    MEDIANS[name, table.done] = median(times)

    # A scan of the million takes at least 100 ms; a busy machine adds a few.
    assert median(times) < 3 * MEDIANS.get((name, 0), median(times)) + 0.025


def test_pruning_keeps_up_with_ten_times_the_rate_of_new_deliveries(table: Table):
    """The benchmark creates 400 per second. The last batch takes no longer than the first."""
    store, times = Outbox(table.engine), []
    for _ in range(60):
        began = time.perf_counter()
        assert store.prune(0.0) == min(table.done, 1000)
        times.append(time.perf_counter() - began)

    assert 1000 / median(times) > 4000
    assert median(times[-20:]) < 3 * median(times[:20]) + 0.025
