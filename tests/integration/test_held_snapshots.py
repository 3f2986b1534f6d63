"""A snapshot that somebody holds is named, and does not slow down the publishing of events."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Connection, Engine, create_engine, text

from local.waiting import eventually
from messaging.operator.snapshots import holders
from messaging.postgres.announcements import Announcements
from messaging.postgres.due import DueDeliveries
from messaging.postgres.low_water import LowWater
from messaging.postgres.outbox import Outbox

ADD = text("""
INSERT INTO announcements (event_id, event_type, payload, correlation_id, causation_id, at)
SELECT gen_random_uuid(), 'OutOfStock', '{}', 'c', 'c', now() FROM generate_series(1, :count)
RETURNING position""")

OWE = text("""
INSERT INTO deliveries
    (id, event_id, event_type, payload, handler, due_at, grace_s, correlation_id, causation_id)
SELECT gen_random_uuid(), gen_random_uuid(), 'OutOfStock', '{}', 'send_out_of_stock_notification',
       now() - make_interval(secs => :ago), 600, 'c', 'c'
FROM generate_series(1, :count)""")

FINISH = text("UPDATE deliveries SET status = 'done', finished_at = now()")


@pytest.fixture
def engine(clean_database: str) -> Iterator[Engine]:
    """The project's database."""
    engine = create_engine(clean_database)
    yield engine
    engine.dispose()


@pytest.fixture
def snapshot(clean_database: str) -> Iterator[Connection]:
    """A session that holds a snapshot, like a backup."""
    analyst = create_engine(
        clean_database, connect_args={"application_name": "analyst"}, isolation_level="REPEATABLE READ"
    )
    with analyst.connect() as connection:
        connection.execute(text("SELECT count(*) FROM deliveries"))
        yield connection
    analyst.dispose()


def add(engine: Engine, count: int) -> list[int]:
    """Add events and return their positions."""
    with engine.begin() as connection:
        return sorted(connection.execute(ADD, {"count": count}).scalars())


def take(announcements: Announcements, low: LowWater, limit: int = 100) -> list[int]:
    """Publish some events and return their positions."""
    with announcements.take(limit, low) as taken:
        return [one.position for one in taken]


def index_reads(engine: Engine, table: str = "announcements") -> int:
    """Return how many index entries of a table were read so far."""
    with engine.begin() as connection:
        connection.execute(text("SELECT pg_stat_force_next_flush()"))  # at the end of this transaction
    with engine.begin() as connection:
        query = text("SELECT sum(idx_tup_read) FROM pg_stat_user_indexes WHERE relname = :table")
        return int(connection.execute(query, {"table": table}).scalar_one())


def owe(engine: Engine, count: int, ago_s: float) -> None:
    """Add deliveries that have been due for so many seconds."""
    with engine.begin() as connection:
        connection.execute(OWE, {"count": count, "ago": ago_s})


def relayed(due: DueDeliveries) -> int:
    """Return how many deliveries a search takes."""
    return len(due.take(100, 600))


@pytest.fixture
def due(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> DueDeliveries:
    """A relay's search, to which the first one seems long."""
    monkeypatch.setattr("messaging.postgres.due.LONG_S", 0.0)
    return DueDeliveries(Outbox(engine), longest_run_s=20)


def test_a_session_that_holds_a_snapshot_is_named(engine: Engine, snapshot: Connection):
    pid = snapshot.execute(text("SELECT pg_backend_pid()")).scalar_one()

    [holder] = eventually(lambda: holders(engine, 0.05), what="an old snapshot")

    assert holder.name.startswith(f"session {pid} of ")
    assert "(analyst) from 127.0.0.1, idle in transaction" in str(holder)
    assert holders(engine, 300) == []


def test_publishing_does_not_step_over_what_was_published(engine: Engine, snapshot: Connection):
    """Without a mark each batch would read all dead entries of the earlier ones."""
    announcements, low = Announcements(engine), LowWater()
    add(engine, 3000)
    for _ in range(15):
        assert len(take(announcements, low)) == 100
    before = index_reads(engine)

    for _ in range(15):
        assert len(take(announcements, low)) == 100

    assert index_reads(engine) - before < 15 * 500
    assert take(announcements, low) == []


def test_an_event_with_a_lower_position_that_is_committed_late_is_published(engine: Engine):
    announcements, low = Announcements(engine), LowWater()
    with engine.connect() as slow:
        slow.execute(text("SELECT pg_current_xact_id()"))
        [late] = slow.execute(ADD, {"count": 1}).scalars()
        later = add(engine, 5)
        published = [*take(announcements, low, 2), *take(announcements, low, 2), *take(announcements, low, 2)]
        slow.commit()

    assert published == later
    assert take(announcements, low) == [late]


def test_the_relay_does_not_step_over_finished_deliveries_with_each_search(
    engine: Engine, snapshot: Connection, due: DueDeliveries
):
    owe(engine, 3000, ago_s=3600)
    with engine.begin() as connection:
        connection.execute(FINISH)
        connection.execute(text("ANALYZE deliveries"))
    before = index_reads(engine, "deliveries")
    assert relayed(due) == 0
    first = index_reads(engine, "deliveries") - before
    before = index_reads(engine, "deliveries")

    assert [relayed(due) for _ in range(10)] == [0] * 10

    assert first >= 3000
    assert index_reads(engine, "deliveries") - before < 100


def test_the_relay_finds_what_was_locked_or_came_late_while_it_looked(
    engine: Engine, snapshot: Connection, due: DueDeliveries
):
    owe(engine, 1, ago_s=3600)
    with engine.connect() as worker:
        worker.execute(text("SELECT FROM deliveries FOR UPDATE"))
        assert [relayed(due), relayed(due)] == [0, 0]
    owe(engine, 1, ago_s=10)  # written by a transaction that began ten seconds ago

    assert relayed(due) == 2


def test_the_relay_looks_from_the_beginning_every_minute(
    engine: Engine, snapshot: Connection, due: DueDeliveries, monkeypatch: pytest.MonkeyPatch
):
    assert relayed(due) == 0
    owe(engine, 1, ago_s=3600)
    assert relayed(due) == 0

    monkeypatch.setattr("messaging.postgres.due.ALL_EVERY_S", 0.0)

    assert relayed(due) == 1


def test_a_quick_search_is_always_from_the_beginning(engine: Engine):
    due = DueDeliveries(Outbox(engine), longest_run_s=20)
    assert relayed(due) == 0
    owe(engine, 1, ago_s=3600)

    assert relayed(due) == 1


def test_events_that_are_committed_late_are_published_before_those_committed_after_them(engine: Engine):
    """Although a batch is too small for all of them: an event of the same product may follow meanwhile."""
    announcements, low = Announcements(engine), LowWater()
    with engine.connect() as slow:
        slow.execute(text("SELECT pg_current_xact_id()"))
        late = sorted(slow.execute(ADD, {"count": 30}).scalars())
        other = add(engine, 10)
        published = take(announcements, low, 10)
        slow.commit()
    published += take(announcements, low, 20)
    after = add(engine, 40)

    while some := take(announcements, low, 40):
        published += some

    assert published == other + late + after
