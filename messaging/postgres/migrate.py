"""Migrate a database to the newest schema: the bus's own tables and a project's, in one transaction."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Engine, text

HERE = Path(__file__).parent / "migrations"

#: Any constant will do; it makes concurrent migrations run one after the other.
LOCK = 4_177_010


def migrate(engine: Engine, project_versions: Path) -> None:
    """Apply the missing migrations; safe to run twice or concurrently."""
    config = _config(project_versions)
    with engine.begin() as connection:
        # A worker waits seconds for a lock; a migration waits for running transactions and other migrations.
        connection.execute(text("SET LOCAL lock_timeout = 0"))
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})
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
