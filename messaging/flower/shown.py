"""Show the bare arguments that other apps send as a command in Flower."""

from __future__ import annotations

import ast
from typing import Any

from messaging.errors import MessagingError
from messaging.project import Project
from messaging.wire.validation import parse


def shown_task(project: Project, task: Any) -> Any:
    """Return a Flower task whose arguments are shown as the command, if they can be parsed."""
    kind = project.command_tasks.get(task.name)
    if kind is None:
        return task
    try:
        args = ast.literal_eval(task.args or "()")
        fields = ast.literal_eval(task.kwargs or "{}")
        task.args, task.kwargs = repr(parse(kind, args, fields)), ""
    except (MessagingError, ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        pass  # truncated by Celery, invalid, or already a repr: shown unchanged
    return task
