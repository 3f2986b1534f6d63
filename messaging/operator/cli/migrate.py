"""`migrate`: migrate the database to the newest schema."""

from __future__ import annotations

import click

from messaging.operator.cli.tool import Documented, Tool
from messaging.postgres.migrate import migrate as apply_migrations

pass_tool = click.make_pass_decorator(Tool)


@click.command(cls=Documented, epilog="Example:\n  {prog} migrate\n\nEnvironment: {PROJECT}_DATABASE_URL.")
@pass_tool
def migrate(tool: Tool) -> None:
    """Migrate the database to the newest schema; safe to repeat, and to run twice at the same time."""
    apply_migrations(tool.runtime.engine, tool.project.migrations)
