"""Migrate a database to the newest schema: the bus's own tables and a project's, in one transaction."""

from __future__ import annotations

import logging
import time
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from psycopg2.errors import DeadlockDetected, LockNotAvailable
from sqlalchemy import Engine, text
from sqlalchemy.exc import OperationalError

logger = logging.getLogger(__name__)

HERE = Path(__file__).parent / "migrations"

#: Any constant will do; it makes concurrent migrations run one after the other.
LOCK = 4_177_010

#: Seconds for which a migration waits for a table. Whoever uses the table waits behind it, and gives up after
#: `task_time_limit_s / (command_attempts + 1)`, 6 s by default.
LOCK_S = 3.0
#: Seconds in which the others go on.
PAUSE_S = 3.0


def migrate(engine: Engine, project_versions: Path) -> None:
    """Apply the missing migrations; safe to run twice or concurrently.

    Repeats that until no transaction, such as a backup, keeps it from changing a table, not even by using two
    tables in another order.
    """
    while True:
        try:
            return _migrate(engine, project_versions)
        except OperationalError as error:
            if not isinstance(error.orig, LockNotAvailable | DeadlockDetected):
                raise
        logger.warning("A table is in use, by a backup or a long transaction: trying again in %g s", PAUSE_S)
        time.sleep(PAUSE_S)


def _migrate(engine: Engine, project_versions: Path) -> None:
    config = _config(project_versions)
    with engine.begin() as connection:
        connection.execute(text("SET LOCAL lock_timeout = 0"))  # another migration may take long
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})
        connection.execute(text(f"SET LOCAL lock_timeout = '{LOCK_S} s'"))
        config.attributes["connection"] = connection
        command.upgrade(config, "heads")


def missing(engine: Engine, project_versions: Path) -> set[str]:
    """Return the revisions that the database lacks; empty when it is up to date."""
    heads = set(ScriptDirectory.from_config(_config(project_versions)).get_heads())
    with engine.connect() as connection:
        return heads - set(MigrationContext.configure(connection).get_current_heads())


def _config(project_versions: Path) -> Config:
    config = Config()
    config.set_main_option("path_separator", "newline")
    config.set_main_option("script_location", _escaped(HERE))
    config.set_main_option(
        "version_locations", f"{_escaped(HERE / 'versions')}\n{_escaped(project_versions)}"
    )
    return config


def _escaped(path: Path) -> str:
    """Escape a path for an ini file, where % starts a substitution."""
    return str(path).replace("%", "%%")
