"""The peers do the same job as our code: the same batch for a line, once, and none without room."""

from collections.abc import Iterator

import psycopg2
import pytest

from benchmarks.peers import job


@pytest.fixture
def database(
    clean_database: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[psycopg2.extensions.connection]:
    """One SKU with ten pieces on the shelf and ten in a shipment, as seen by the peers."""
    monkeypatch.setenv("ALLOCATION_DATABASE_URL", clean_database)
    connection = psycopg2.connect(clean_database.replace("+psycopg2", "", 1))
    connection.autocommit = True
    with connection.cursor() as run:
        run.execute("INSERT INTO products VALUES ('LAMP')")
        run.execute(
            "INSERT INTO batches (reference, sku, eta, purchased_quantity)"
            " VALUES ('later', 'LAMP', '2030-01-01', 10), ('shelf', 'LAMP', NULL, 10)"
        )
    yield connection
    connection.close()
    job.connection().close()
    del job._local.connection


def _state(connection: psycopg2.extensions.connection) -> list[tuple[object, ...]]:
    with connection.cursor() as run:
        run.execute("SELECT reference, allocated_quantity FROM batches ORDER BY 1")
        return run.fetchall()


def test_the_job_by_hand_takes_from_the_shelf_first(database):
    """Warehouse before shipments, and the allocation is recorded."""
    assert job.allocate("id-1", "o1", "LAMP", 8) == "shelf"
    assert job.allocate("id-2", "o2", "LAMP", 8) == "later"
    assert _state(database) == [("later", 8), ("shelf", 8)]


def test_the_job_by_hand_allocates_a_line_once(database):
    """A repeat returns the same batch."""
    job.allocate("id-1", "o1", "LAMP", 8)

    assert job.allocate("id-2", "o1", "LAMP", 8) == "shelf"
    assert _state(database) == [("later", 0), ("shelf", 8)]


def test_the_job_by_hand_allocates_nothing_without_room(database):
    """No batch has eleven pieces."""
    assert job.allocate("id-1", "o1", "LAMP", 11) is None
    assert _state(database) == [("later", 0), ("shelf", 0)]


def test_the_job_by_hand_refuses_a_message_that_it_has_already_answered(database):
    """Its inbox row is written in the same transaction."""
    job.allocate("id-1", "o1", "LAMP", 1)

    with pytest.raises(psycopg2.errors.UniqueViolation):
        job.allocate("id-1", "o2", "LAMP", 1)
    assert _state(database) == [("later", 0), ("shelf", 1)]
