"""`migrate`: bring the database to the newest schema."""

from __future__ import annotations

import click

from messaging.operator.cli.tool import Documented, Tool
from messaging.postgres.migrate import migrate as apply_migrations

pass_tool = click.make_pass_decorator(Tool)


@click.command(cls=Documented, epilog="Example:\n  {prog} migrate\n\nEnvironment: {PROJECT}_DATABASE_URL.")
@pass_tool
def migrate(tool: Tool) -> None:
    """Bring the database to the newest schema; safe to run twice, and by two at once."""
    apply_migrations(tool.runtime.engine, tool.project.migrations)
