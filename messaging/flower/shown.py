"""Commands of other apps come with bare arguments; Flower shows them as the message that they make."""

from __future__ import annotations

import ast
from typing import Any

from messaging.errors import InvalidMessage
from messaging.project import Project
from messaging.validation import parse


def shown_task(project: Project, task: Any) -> Any:
    """Return a Flower task whose arguments read as the command, where they can be read at all."""
    kind = project.command_tasks.get(task.name)
    if kind is None:
        return task
    try:
        args = ast.literal_eval(task.args or "()")
        fields = ast.literal_eval(task.kwargs or "{}")
        task.args, task.kwargs = repr(parse(kind, args, fields)), ""
    except (InvalidMessage, ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        pass  # cut off by Celery, refused, or a repr already: shown as it came
    return task
