"""A migration of a database that is in use."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from alembic.util import CommandError
from sqlalchemy import create_engine, text
from sqlalchemy.exc import OperationalError

from allocation.bootstrap import project
from allocation.domain.events import OutOfStock
from local.ports import LOOPBACK
from local.servers.postgres_server import Postgres, binaries
from local.waiting import eventually
from messaging.postgres.migrate import migrate, missing
from messaging.worker.app import MessagingApp
from testing.databases import FAST
from tests.containers.server import typed
from tests.integration.outbox import app_on, ask

NEXT_RELEASE = """
from alembic import op

revision, down_revision, branch_labels, depends_on = "next", None, None, None


def upgrade():
    op.execute("CREATE TABLE later (id integer)")
    op.execute("ALTER TABLE deliveries ADD COLUMN later text")
    op.execute("ALTER TABLE announcements ADD COLUMN later text")
"""

#: Another migration waits, and the first one lets the workers go on.
PAUSES = """
SELECT count(*) FILTER (WHERE locktype = 'advisory') > 0
       AND count(*) FILTER (WHERE mode = 'AccessExclusiveLock') = 0
FROM pg_locks WHERE NOT granted
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


def test_workers_go_on_as_well_while_two_migrations_wait(
    app: MessagingApp, versions: Path, monkeypatch: pytest.MonkeyPatch
):
    """Otherwise one would wait for the table while the other pauses."""
    monkeypatch.setattr("messaging.postgres.migrate.LOCK_S", 0.5)
    monkeypatch.setattr("messaging.postgres.migrate.PAUSE_S", 2.0)
    engine = app.runtime.engine
    with ThreadPoolExecutor(2) as pool, engine.connect() as backup:
        backup.execute(text("LOCK TABLE deliveries IN ACCESS SHARE MODE"))
        migrations = [pool.submit(migrate, engine, versions) for _ in range(2)]

        eventually(lambda: ask(app, WAITS) == [(True,)], 20, "a migration that waits", every=0.02)
        eventually(lambda: ask(app, PAUSES) == [(True,)], 20, "a pause", every=0.02)
        app.runtime.outbox.raise_by_hand(OutOfStock("LAMP"))
        assert ask(app, PAUSES) == [(True,)]

        backup.rollback()
        for migration in migrations:
            migration.result(30)

    assert missing(engine, versions) == set()


@pytest.mark.parametrize("branch", ["its own", "the project's"])
def test_a_release_starts_again_on_the_schema_of_the_next_one(app: MessagingApp, versions: Path, branch: str):
    """Its migration has nothing to do, and its `check` finds nothing missing."""
    engine = app.runtime.engine
    if branch == "the project's":
        last = max(file.stem.partition("_")[0] for file in project.migrations.glob("a*.py"))
        (versions / "next.py").write_text(NEXT_RELEASE.replace('"next", None', f'"next", "{last}"'))
    migrate(engine, versions)

    migrate(engine, project.migrations)

    assert missing(engine, project.migrations) == set()
    assert missing(engine, versions) == set()
    assert ask(app, "SELECT later FROM deliveries") == []


def test_the_database_of_another_project_is_refused(app: MessagingApp, tmp_path: Path):
    """The two would share the table of deliveries."""
    (tmp_path / "next.py").write_text(NEXT_RELEASE)

    with pytest.raises(CommandError, match="Can't locate revision"):
        migrate(app.runtime.engine, tmp_path)

    assert missing(app.runtime.engine, tmp_path) == {"next"}


def test_a_backup_of_the_release_before_can_be_restored_and_migrated(tmp_path: Path, versions: Path):
    """What the page says, with PostgreSQL's own programs: a table of the next release must not be left."""
    back_up, restore = (_without_containers(block) for block in typed("Back up"))
    with Postgres(tmp_path / "postgres", settings=FAST) as server:
        engine = create_engine(server.url)
        migrate(engine, project.migrations)
        with engine.begin() as connection:
            connection.execute(text("INSERT INTO products VALUES ('LAMP')"))
        _type(back_up, tmp_path, server)
        migrate(engine, versions)
        with engine.begin() as connection:
            connection.execute(text("INSERT INTO products VALUES ('CHAIR')"))
        engine.dispose()

        _type(restore, tmp_path, server)
        migrate(engine, versions)

        with engine.connect() as connection:
            assert connection.execute(text("SELECT sku FROM products")).scalars().all() == ["LAMP"]
            assert connection.execute(text("SELECT count(*) FROM later")).scalar_one() == 0
        engine.dispose()


def _without_containers(block: str) -> str:
    """Return the commands for PostgreSQL; whatever concerns other containers does nothing."""
    own = block.replace("docker compose exec -T postgres ", "")
    return re.sub(r"docker compose [^&\n]*", "true ", own)


def _type(block: str, folder: Path, server: Postgres) -> None:
    path = f"{binaries()}{os.pathsep}{os.environ['PATH']}"
    where = {"PATH": path, "PGHOST": LOOPBACK, "PGPORT": str(server.port)}
    typed_in = ["bash", "-euo", "pipefail", "-c", block]
    ended = subprocess.run(
        typed_in, cwd=folder, env={**os.environ, **where}, text=True, capture_output=True, check=False
    )
    assert ended.returncode == 0, ended.stderr


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
