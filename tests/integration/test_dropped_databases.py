"""A test's own database is dropped, whatever is at work there."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import psycopg2
import pytest

from local.servers.postgres_server import Postgres
from local.waiting import eventually
from testing.databases import FAST, copy_database, drop_database


@pytest.fixture
def vacuuming(server_folder: Path) -> Iterator[Postgres]:
    """A PostgreSQL that looks for dead rows every second."""
    with Postgres(server_folder / "vacuuming", settings=FAST | {"autovacuum_naptime": "1s"}) as server:
        yield server


def test_autovacuum_does_not_keep_a_database(vacuuming: Postgres):
    """Only a member of `pg_signal_backend` may end it by force; the drop waits for it."""
    url = copy_database(vacuuming, "template1")
    with closing(_connected(url)) as session, session.cursor() as run:
        # Slowed down to a second or two.
        run.execute("""CREATE TABLE churned (row int) WITH (autovacuum_vacuum_threshold = 0,
            autovacuum_vacuum_cost_delay = 20, autovacuum_vacuum_cost_limit = 20)""")
        run.execute("INSERT INTO churned SELECT generate_series(1, 20000)")
        run.execute("DELETE FROM churned")
        eventually(lambda: _vacuums(run), what="an autovacuum in the database", every=0.01)

    drop_database(vacuuming, url)

    with closing(_connected(vacuuming.url_of("postgres"))) as session, session.cursor() as run:
        run.execute("SELECT 1 FROM pg_database WHERE datname = %s", (url.rpartition("/")[2],))
        assert run.fetchone() is None


def _connected(url: str) -> psycopg2.extensions.connection:
    """Return a session whose statements commit one by one."""
    session = psycopg2.connect(url.replace("+psycopg2", "", 1))
    session.autocommit = True
    return session


def _vacuums(run: psycopg2.extensions.cursor) -> bool:
    """Whether autovacuum is at work in the session's database."""
    run.execute("""SELECT 1 FROM pg_stat_activity
        WHERE backend_type = 'autovacuum worker' AND datname = current_database()""")
    return run.fetchone() is not None
