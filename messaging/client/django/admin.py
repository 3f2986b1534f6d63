"""The page of commands: what waits, what came back, and sending again. Nothing is written by hand."""

from __future__ import annotations

from typing import Any, ClassVar

from django.contrib import admin
from django.db import connections, transaction
from django.db.models import Q, QuerySet

from messaging.client.django import configured
from messaging.client.django.models import QueuedCommand

STATES = {
    "unsent": Q(task_id__isnull=True),
    "unanswered": Q(task_id__isnull=False, answered_at__isnull=True),
    "answered": Q(answered_at__isnull=False, handled_at__isnull=True),
    "handled": Q(handled_at__isnull=False),
}


class StateFilter(admin.SimpleListFilter):
    """Commands by what they wait for."""

    title = "state"
    parameter_name = "state"

    def lookups(self, *_: Any) -> list[tuple[str, str]]:
        """Name the states."""
        return [(state, state) for state in STATES]

    def queryset(self, _request: Any, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """Choose."""
        chosen = self.value()
        return queryset.filter(STATES[chosen]) if chosen in STATES else queryset


@admin.register(QueuedCommand)
class QueuedCommandAdmin(admin.ModelAdmin):
    """Read-only but for sending again."""

    list_display = ("idempotency_key", "task", "fields", "state", "answer", "created")
    list_filter = (StateFilter, "task")
    search_fields = ("idempotency_key", "order_group")
    actions: ClassVar = ["send_again"]

    @admin.action(
        description="Send again (answered commands; one that was carried out changes nothing)",
        permissions=["send"],
    )
    def send_again(self, request: Any, queryset: QuerySet[Any]) -> None:
        """Make the chosen commands unsent."""
        using = queryset.db
        with transaction.atomic(using=using):
            run = connections[using]
            keys = [command.idempotency_key for command in queryset]
            count = sum(configured.outbox().send_again(run, key) for key in keys)
        self.message_user(request, f"{count} will be sent again.")

    def has_send_permission(self, request: Any) -> bool:
        """Allow sending again to whoever may change commands."""
        return bool(request.user.has_perm("command_outbox.change_queuedcommand"))

    def has_add_permission(self, *_: Any, **__: Any) -> bool:
        """Forbid: `outbox.send` does that."""
        return False

    def has_delete_permission(self, *_: Any, **__: Any) -> bool:
        """Forbid: a command that is gone from its message would change the others' places in it."""
        return False

    def has_change_permission(self, *_: Any, **__: Any) -> bool:
        """Forbid changes by hand."""
        return False
