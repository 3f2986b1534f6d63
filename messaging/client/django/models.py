"""The table of commands, to look at. `outbox.send(connection, …)` writes it, and the relay."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import ClassVar

from django.db import models


class QueuedCommand(models.Model):
    """A command that was sent in a transaction of this app's. Times are seconds since 1970."""

    position = models.BigAutoField(primary_key=True)
    idempotency_key = models.CharField(max_length=255, unique=True)
    task = models.CharField(max_length=255)
    fields = models.TextField()
    order_group = models.CharField(max_length=255, null=True, blank=True)  # null: in no group
    created_at = models.FloatField()
    due_at = models.FloatField()
    attempts = models.IntegerField(default=0)
    task_id = models.CharField(max_length=64, null=True, blank=True)  # null: unsent
    sent_at = models.FloatField(null=True, blank=True)
    answer = models.TextField(null=True, blank=True)  # null: none yet
    answered_at = models.FloatField(null=True, blank=True)
    handled_at = models.FloatField(null=True, blank=True)
    traceparent = models.CharField(max_length=55, null=True, blank=True)  # null: in no trace

    class Meta:
        """Names."""

        db_table = "command_outbox"
        ordering: ClassVar = ["position"]
        verbose_name = "command"

    def __str__(self) -> str:
        """Return the key."""
        return str(self.idempotency_key)

    @property
    def state(self) -> str:
        """Return what the command waits for, if anything."""
        if self.task_id is None:
            return "unsent"
        if self.answered_at is None:
            return "unanswered"
        return "answered" if self.handled_at is None else "handled"

    @property
    def created(self) -> datetime:
        """Return when it was written."""
        return datetime.fromtimestamp(self.created_at, UTC)
