"""A migration of a database that is in use."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from allocation.bootstrap import project
from allocation.domain.events import OutOfStock
from local.waiting import eventually
from messaging.postgres.migrate import migrate, missing
from messaging.worker.app import MessagingApp
from tests.integration.outbox import app_on, ask

NEXT_RELEASE = """
from alembic import op

revision, down_revision, branch_labels, depends_on = "next", None, None, None


def upgrade():
    op.execute("CREATE TABLE later (id integer)")
    op.execute("ALTER TABLE deliveries ADD COLUMN later text")
    op.execute("ALTER TABLE announcements ADD COLUMN later text")
"""

WAITS = "SELECT count(*) > 0 FROM pg_locks WHERE mode = 'AccessExclusiveLock' AND NOT granted"


@pytest.fixture
def app(new_database: Callable[[], str]) -> Iterator[MessagingApp]:
    """An app on a database of its own, which the test migrates."""
    yield from app_on(new_database())


@pytest.fixture
def versions(tmp_path: Path) -> Path:
    """The project's migrations, and one that changes the table of deliveries."""
    shutil.copytree(project.migrations, tmp_path / "versions")
    (tmp_path / "versions" / "next.py").write_text(NEXT_RELEASE)
    return tmp_path / "versions"


def test_workers_go_on_while_a_migration_waits_for_a_backup(
    app: MessagingApp, versions: Path, monkeypatch: pytest.MonkeyPatch
):
    """Whoever uses the table waits behind the migration, so that waits for a short time only."""
    monkeypatch.setattr("messaging.postgres.migrate.LOCK_S", 1.0)
    monkeypatch.setattr("messaging.postgres.migrate.PAUSE_S", 0.2)
    engine, write = app.runtime.engine, app.runtime.outbox.raise_by_hand
    with ThreadPoolExecutor(1) as pool, engine.connect() as backup:
        backup.execute(text("LOCK TABLE deliveries IN ACCESS SHARE MODE"))
        migration = pool.submit(migrate, engine, versions)
        for _ in range(2):
            eventually(lambda: ask(app, WAITS) == [(True,)], 20, "a migration that waits", every=0.02)
            write(OutOfStock("LAMP"))
        assert not migration.done()
        assert missing(engine, versions) == {"next"}

        backup.rollback()
        migration.result(30)

    assert missing(engine, versions) == set()
    assert ask(app, "SELECT later FROM deliveries") == [(None,), (None,)]


def test_a_migration_begins_again_after_a_deadlock(
    app: MessagingApp, versions: Path, monkeypatch: pytest.MonkeyPatch
):
    """With a worker that uses its tables in another order."""
    monkeypatch.setattr("messaging.postgres.migrate.PAUSE_S", 0.2)
    engine = app.runtime.engine
    with ThreadPoolExecutor(1) as pool, engine.connect() as worker:
        worker.execute(text("LOCK TABLE announcements IN ROW EXCLUSIVE MODE"))
        migration = pool.submit(migrate, engine, versions)
        eventually(lambda: ask(app, WAITS) == [(True,)], 20, "a migration that waits", every=0.02)
        with suppress(OperationalError):  # if this machine was slow, the worker has to give way
            worker.execute(text("LOCK TABLE deliveries IN ROW EXCLUSIVE MODE"))
        worker.rollback()
        migration.result(30)

    assert missing(engine, versions) == set()
