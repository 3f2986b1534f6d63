"""Other apps send bare arguments; Flower shows them as the command that they stand for."""

from __future__ import annotations

import ast
from typing import Any

from messaging.errors import InvalidMessage
from messaging.project import Project
from messaging.validation import parse


def shown_task(project: Project, task: Any) -> Any:
    """Return a Flower task whose arguments are shown as the command, if they can be parsed."""
    kind = project.command_tasks.get(task.name)
    if kind is None:
        return task
    try:
        args = ast.literal_eval(task.args or "()")
        fields = ast.literal_eval(task.kwargs or "{}")
        task.args, task.kwargs = repr(parse(kind, args, fields)), ""
    except (InvalidMessage, ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        pass  # truncated by Celery, invalid, or a repr already: shown unchanged
    return task
