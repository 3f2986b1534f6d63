"""A snapshot that somebody holds is named, and does not slow down the publishing of events."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from sqlalchemy import Connection, Engine, create_engine, text

from local.waiting import eventually
from messaging.operator.snapshots import holders
from messaging.postgres.announcements import Announcements
from messaging.postgres.low_water import LowWater

ADD = text("""
INSERT INTO announcements (event_id, event_type, payload, correlation_id, causation_id, at)
SELECT gen_random_uuid(), 'OutOfStock', '{}', 'c', 'c', now() FROM generate_series(1, :count)
RETURNING position""")


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


def index_reads(engine: Engine) -> int:
    """Return how many index entries of `announcements` were read so far."""
    with engine.begin() as connection:
        connection.execute(text("SELECT pg_stat_force_next_flush()"))
        query = "SELECT sum(idx_tup_read) FROM pg_stat_user_indexes WHERE relname = 'announcements'"
        return int(connection.execute(text(query)).scalar_one())


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
