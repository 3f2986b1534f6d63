"""Checks of a project's messages when its app is made, so that no worker starts that would lose one."""

from __future__ import annotations

from collections.abc import Iterable

from messaging.messages import Message, task_name
from messaging.project import Project
from messaging.wire.validation import model


def check_messages(project: Project, taken: Iterable[str]) -> None:
    """Refuse messages that have the name of another one, or of `taken` tasks, or cannot survive JSON.

    Tasks and rows refer to a message by the name of its class only.

    Raises:
        ValueError: the text names the message.
    """
    known: dict[str, type[Message]] = {}
    for kind in (*project.bus.commands, *project.bus.events):
        name = kind.__name__
        if known.setdefault(name, kind) is not kind:
            raise ValueError(f"Two messages are called {name}: one would be taken for the other")
        model(kind)
    tasks = set(taken)
    for command in project.bus.commands:
        task = task_name(project.name, command)
        if task in tasks:
            raise ValueError(f"No command may be called {command.__name__}: another task is called {task}")
        tasks.add(task)
