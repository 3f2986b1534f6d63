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
from sqlalchemy import Connection, Engine, MetaData, Table, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.schema import SetTableComment

logger = logging.getLogger(__name__)

HERE = Path(__file__).parent / "migrations"

#: Any constant will do; it makes concurrent migrations run one after the other.
LOCK = 4_177_010

#: Seconds for which a migration waits for a table. Whoever uses the table waits behind it, and gives up after
#: `task_time_limit_s / (command_attempts + 1)`, 6 s by default.
LOCK_S = 3.0
#: Seconds in which the others go on.
PAUSE_S = 3.0

#: Alembic stores only the last revision of each branch, which earlier releases do not know.
#: The comment on its table names all that were applied.
NOTED = text("SELECT obj_description(to_regclass('alembic_version'), 'pg_class')")


def migrate(engine: Engine, project_versions: Path) -> None:
    """Apply the missing migrations; safe to run twice or concurrently, and after a later release's.

    Tries again while another transaction, such as a backup, keeps it from changing a table, and after a
    deadlock.
    """
    while True:
        with engine.begin() as connection:
            connection.execute(text("SET LOCAL lock_timeout = 0"))  # another migration may take long
            connection.execute(text("SET LOCAL idle_in_transaction_session_timeout = 0"))
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})
            connection.execute(text(f"SET LOCAL lock_timeout = '{LOCK_S} s'"))
            try:
                with connection.begin_nested():
                    return _migrate(connection, project_versions)
            except OperationalError as error:
                if not isinstance(error.orig, LockNotAvailable | DeadlockDetected):
                    raise
            logger.warning(
                "A table is in use, by a backup or a long transaction: trying again in %g s", PAUSE_S
            )
            time.sleep(PAUSE_S)  # under the lock: with a migration in each of many pods, too


def _migrate(connection: Connection, project_versions: Path) -> None:
    config = _config(project_versions)
    script = ScriptDirectory.from_config(config)
    applied = _applied(connection)
    if applied.issuperset(script.get_heads()):
        return
    config.attributes["connection"] = connection
    command.upgrade(config, "heads")
    applied.update(revision.revision for revision in script.walk_revisions())
    noted = Table("alembic_version", MetaData(), comment=" ".join(sorted(applied)))
    connection.execute(SetTableComment(noted))


def missing(engine: Engine, project_versions: Path) -> set[str]:
    """Return the revisions that the database lacks; empty when it is up to date, or a later release's."""
    heads = set(ScriptDirectory.from_config(_config(project_versions)).get_heads())
    with engine.connect() as connection:
        return heads - _applied(connection)


def _applied(connection: Connection) -> set[str]:
    noted = connection.execute(NOTED).scalar_one() or ""
    return {*MigrationContext.configure(connection).get_current_heads(), *noted.split()}


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
