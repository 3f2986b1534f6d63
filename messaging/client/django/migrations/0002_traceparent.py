"""The trace that a command was sent in; a new table has the column already."""

from typing import Any, ClassVar

from django.db import migrations, models

from messaging.client.connections import statements
from messaging.client.table import CommandTable

TABLE = "command_outbox"


def add(_apps: Any, editor: Any) -> None:
    """Add the column to a table that was created without it."""
    if not CommandTable(TABLE).has_traces(statements(editor.connection)):
        editor.execute(f"ALTER TABLE {TABLE} ADD COLUMN traceparent varchar(55)")


class Migration(migrations.Migration):
    """Add the column."""

    dependencies: ClassVar[list[tuple[str, str]]] = [("command_outbox", "0001_initial")]
    operations: ClassVar = [
        migrations.SeparateDatabaseAndState(
            database_operations=[migrations.RunPython(add, migrations.RunPython.noop)],
            state_operations=[
                migrations.AddField(
                    "queuedcommand",
                    "traceparent",
                    models.CharField(blank=True, max_length=55, null=True),
                )
            ],
        )
    ]
