"""The table of commands, made by the statements that every app gets."""

from typing import Any, ClassVar

from django.db import migrations, models

from messaging.client.dialects import ddl, dialect_named

TABLE = "command_outbox"


def create(_apps: Any, editor: Any) -> None:
    """Create the table in whichever database this is."""
    for statement in ddl(dialect_named(editor.connection.vendor), TABLE):
        editor.execute(statement)


def drop(_apps: Any, editor: Any) -> None:
    """Drop it with the commands that wait."""
    editor.execute(f"DROP TABLE {TABLE}")


class Migration(migrations.Migration):
    """Create the table; Django need only know its columns."""

    initial = True
    dependencies: ClassVar[list[tuple[str, str]]] = []
    operations: ClassVar = [
        migrations.SeparateDatabaseAndState(
            database_operations=[migrations.RunPython(create, drop)],
            state_operations=[
                migrations.CreateModel(
                    name="QueuedCommand",
                    fields=[
                        ("position", models.BigAutoField(primary_key=True, serialize=False)),
                        ("idempotency_key", models.CharField(max_length=255, unique=True)),
                        ("task", models.CharField(max_length=255)),
                        ("fields", models.TextField()),
                        ("order_group", models.CharField(blank=True, max_length=255, null=True)),
                        ("created_at", models.FloatField()),
                        ("due_at", models.FloatField()),
                        ("attempts", models.IntegerField(default=0)),
                        ("task_id", models.CharField(blank=True, max_length=64, null=True)),
                        ("sent_at", models.FloatField(blank=True, null=True)),
                        ("answer", models.TextField(blank=True, null=True)),
                        ("answered_at", models.FloatField(blank=True, null=True)),
                        ("handled_at", models.FloatField(blank=True, null=True)),
                    ],
                    options={
                        "db_table": TABLE,
                        "ordering": ["position"],
                        "verbose_name": "command",
                    },
                )
            ],
        )
    ]
